"""The judges: what a chimera is worth, in numbers."""
