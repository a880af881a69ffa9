"""Draw the predictions of a trained model for given images."""
