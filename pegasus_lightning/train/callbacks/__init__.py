"""Watchers: they look at a model through its public methods, and write what they see."""
