"""The measures, one file each: pure functions of images, features and probabilities."""
