"""Metrics, one file per group: pure functions of images, features and probabilities."""
