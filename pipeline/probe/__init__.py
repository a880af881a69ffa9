"""Evaluate frozen features: their encoder (source), their computation (features), their accuracy (judge)."""
