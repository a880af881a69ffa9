"""Kinds of samples: the files of each kind, their check for training, and their thumbnails."""
