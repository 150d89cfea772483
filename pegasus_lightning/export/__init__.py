"""Export of trained networks to files that can be used without a checkpoint."""
