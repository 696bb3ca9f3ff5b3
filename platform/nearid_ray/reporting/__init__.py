"""The report: one self-contained page of tables and figures, and the same numbers as CSV and Markdown."""
