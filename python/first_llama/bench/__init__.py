"""Paired timings: every variant is timed once in each repeat, and ratios are taken within a repeat."""
