"""Fitting of a law to points: objectives, solver, typed outcomes, scatter of runs, and selection between forms."""
