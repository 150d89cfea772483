"""Training callbacks. They use the public methods of the model only, and write logs, grids and verdicts."""
