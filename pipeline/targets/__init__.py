"""What the model has to predict (HOG) and where (masks)."""
