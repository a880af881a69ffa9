"""The checks and measurements of `scripts/bench.py gpu`, item by item."""
