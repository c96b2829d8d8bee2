"""Mirrors runs to a dashboard: Weights & Biases or Trackio, live or later from the store."""
