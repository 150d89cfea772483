"""Training of one run: settings, trainer, guide and callbacks."""
