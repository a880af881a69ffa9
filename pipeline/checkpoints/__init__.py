"""Checkpoints: their format, their seals, and how they are written."""
