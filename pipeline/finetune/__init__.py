"""Fine-tuning: the encoder of a pre-training run learns to name classes."""
