"""What frozen features are worth: whose they are (source), what they are (features), how they are judged (judge)."""
