"""Dry runs: what a command would measure, what of it is done, and about how long the rest takes."""
