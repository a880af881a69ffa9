"""Pre-training: learning to predict what is under masked patches."""
