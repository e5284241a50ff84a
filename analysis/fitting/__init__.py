"""One law to points: the objectives, the solver, typed outcomes, the scatter of runs, and selection between forms."""
