"""One module a study. Run one with `scaling run experiments.NAME --store STORE`."""
