"""What a person and a program are told of a run."""
