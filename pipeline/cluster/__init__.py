"""The processes of a run and their machines: ranks, launchers, stopping, and detecting lost ranks."""
