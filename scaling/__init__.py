"""The scaling-study harness: data, model, training and study. Besides `cluster`, the only package that uses Ray."""
