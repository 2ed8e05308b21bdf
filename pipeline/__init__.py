"""Billion-scale CLIP training: ingest -> train -> evaluate -> report."""

__version__ = "0.1.0"
