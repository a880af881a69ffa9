"""A data set in the making: its workers, shards, rows and records."""
