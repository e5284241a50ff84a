"""What runs: learning rates, nodes, admission, trials and their rows, progress."""
