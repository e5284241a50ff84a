"""The input of fits: validated points from any table, the best trial of each cell, and the costs of runs."""
