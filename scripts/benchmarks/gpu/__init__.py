"""All that `scripts/bench.py gpu` checks and measures on one GPU, item by item."""
