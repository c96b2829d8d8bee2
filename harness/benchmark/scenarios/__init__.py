"""Scenarios: how the turns of a question are played, and the runner that asks an engine on their behalf."""
