"""WebDataset tars: what they hold, how they are named, checked and written."""
