"""Pre-training: learn to predict the targets of masked patches."""
