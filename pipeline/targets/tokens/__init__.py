"""Discrete tokens: the ids that a tokenizer gives to patches."""
