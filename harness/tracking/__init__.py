"""Mirrors runs to a dashboard (Weights & Biases or Trackio) when they end, or later from the store."""
