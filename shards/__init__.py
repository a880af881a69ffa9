"""Turns images into checked WebDataset shards with a manifest that names every sample's bytes."""
