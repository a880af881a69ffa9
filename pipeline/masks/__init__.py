"""Which patches a model must not see."""
