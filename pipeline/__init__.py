"""Shards -> batches -> targets -> a trained model."""
