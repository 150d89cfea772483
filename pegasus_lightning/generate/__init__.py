"""Makers: pairs of images, the mixing of their codes, and the search for good mixes."""
