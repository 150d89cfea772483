"""Generation of pegasi: pairs of images, mixing of their codes, and search for the best mixes."""
