"""Vision transformers as MaskFeat uses them: one module for each family, chosen in registry.py."""
