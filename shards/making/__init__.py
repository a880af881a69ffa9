"""A data set under construction: its workers, shards, rows and records."""
