"""Training of one run: settings, trainer and callbacks."""
