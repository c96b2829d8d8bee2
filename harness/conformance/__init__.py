"""Conformance: compares our EAGLE with recorded cases of the official code."""
