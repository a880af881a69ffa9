"""Checkpoints: their format, their checksums, and how they are written."""
