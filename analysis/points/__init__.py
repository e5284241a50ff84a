"""The input of fits: validated points from any table, the best trial of each cell of a results table, and costs of runs."""
