"""Report a run to people and programs."""
