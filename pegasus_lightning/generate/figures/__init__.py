"""The figures of `generate`."""
