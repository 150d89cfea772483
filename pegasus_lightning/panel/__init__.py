"""Blind panel: people who do not know where a picture comes from say what it shows."""
