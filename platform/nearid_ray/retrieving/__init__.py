"""Nearest neighbours and clusters of embedded pictures."""
