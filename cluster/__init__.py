"""Studies on a Ray cluster, through its job API: `python -m cluster`."""
