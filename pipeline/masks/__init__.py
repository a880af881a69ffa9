"""Choose the patches that are hidden from the model."""
