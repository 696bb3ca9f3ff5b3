"""Sweeps: a Ray Tune search over settings of training, many trials in one pass over the tokens."""
