"""Measurements of machines, and what they mean."""
