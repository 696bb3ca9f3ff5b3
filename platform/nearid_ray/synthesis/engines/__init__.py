"""Engines, one file a family."""
