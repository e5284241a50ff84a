"""The input: checked points from any table, the best trial of each cell of a results table, and what runs cost."""
