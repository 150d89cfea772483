"""The training command, and sweeps on one machine: planning, slots, processes, progress and final tables."""
