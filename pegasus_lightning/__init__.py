"""pegasus_lightning: adversarial autoencoders on one backbone, and the chimeras that their codes make."""

__version__ = "0.1.0"
