"""Contents of run folders: names, status, checkpoints, scorecards and galleries."""
