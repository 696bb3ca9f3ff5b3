"""Measures of near-identity: margins, success rates, intervals and the records they are computed from."""
