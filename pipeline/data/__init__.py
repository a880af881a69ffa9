"""Feed training: the order of samples (plan), reading, crops (augment), decoding, and all of it together (loader)."""
