"""The Python files of a released checkpoint: copied into it as they are, so they import nothing of this package."""
