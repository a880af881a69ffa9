"""WebDataset tars: their contents, names, checks and writing."""
