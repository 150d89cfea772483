"""Many runs on one machine: slots, a process a run, a table to watch, and what is said at the end."""
