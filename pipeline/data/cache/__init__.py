"""The cache of remote shards that the ranks of a node share."""
