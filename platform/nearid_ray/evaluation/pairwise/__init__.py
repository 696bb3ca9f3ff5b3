"""Scorers that look at two pictures at once: a vision-language judge, VSM, a function of the user's."""
