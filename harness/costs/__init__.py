"""Measured costs of forwards and drafters as tables, and what they predict: headroom and replays."""
