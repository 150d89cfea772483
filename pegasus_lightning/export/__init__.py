"""`python -m pegasus_lightning.export`: trained networks as files that need no checkpoint."""
