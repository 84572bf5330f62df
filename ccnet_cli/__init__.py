"""Semantic segmentation with criss-cross attention, from the command line."""

__version__ = "0.1.0"
