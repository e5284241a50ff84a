"""Model architectures, sizes and checkpoints."""
