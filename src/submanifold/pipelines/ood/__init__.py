"""Out-of-distribution detection: a trained model's scores of test images and of other images."""
