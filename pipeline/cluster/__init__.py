"""The processes of a run and their machines: who they are, how they start, stop, and notice that one is lost."""
