"""Recorded cases of the official EAGLE code."""
