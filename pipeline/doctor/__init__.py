"""Measure machines, and interpret the results."""
