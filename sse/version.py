"""The version of this package, and of the embed script that it serves."""

__version__ = "0.1.0"
