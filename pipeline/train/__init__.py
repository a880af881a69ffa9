"""The DeepSpeed engine, the loop, checkpoints and what a person watches."""
