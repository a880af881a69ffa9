"""Targets: what the model predicts at masked patches, such as HOG."""
