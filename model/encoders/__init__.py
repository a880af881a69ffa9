"""Vision transformers for MaskFeat: one module for each family; registry.py chooses."""
