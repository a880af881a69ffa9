"""Turn images and videos into checked WebDataset shards, with a manifest that lists the bytes of every sample."""
