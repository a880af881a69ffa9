"""Compose shards, batches and targets into a trained model."""
