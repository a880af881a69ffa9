"""Pictures of what a trained model makes of images that a person chooses."""
