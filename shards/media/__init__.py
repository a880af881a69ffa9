"""Kinds of samples: which files are of a kind, which of them can be trained on, and how one looks."""
