"""Discrete tokens: ids that a tokenizer assigns to patches."""
