"""The Parquet files of a data set."""
