"""One module per study. Run one with `scaling run experiments.NAME --store STORE`."""
