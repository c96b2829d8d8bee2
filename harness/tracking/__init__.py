"""Runs mirrored into somebody's dashboard."""
