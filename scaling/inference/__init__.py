"""What uses a trained model: scores, predictions, exports, the importer of the original's checkpoints."""
