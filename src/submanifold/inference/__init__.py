"""Apply a trained model to image files: score, encode, project, sample, and interpolate."""
