"""Planning and running of studies: the plan, learning rates, nodes, admission, trials and their rows, progress."""
