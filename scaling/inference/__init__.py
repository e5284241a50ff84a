"""Use of trained models: scores, predictions, export, and import of the original study's checkpoints."""
