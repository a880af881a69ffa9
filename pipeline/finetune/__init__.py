"""Fine-tuning: train the encoder of a pre-training run as a classifier."""
