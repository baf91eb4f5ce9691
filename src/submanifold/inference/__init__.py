"""Apply a trained model to image files: score, encode, project and sample."""
