"""What is planned and runs: the plan, learning rates, nodes, admission, trials and their rows, progress."""
