"""A page in the browser that mixes two pictures with one model."""
