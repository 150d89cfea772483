"""Figures drawn by `generate`."""
