"""The scaling-study harness: data, model, training and study. The only package that knows Ray."""
