"""The DeepSpeed engine, the training loop, and resuming."""
