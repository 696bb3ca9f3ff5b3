"""Figures: each one a function of arrays and records, drawn as a file of its own and as a section of the report."""
