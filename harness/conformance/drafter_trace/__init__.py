"""Recorded traces of drafters (layout `drafter-trace/1`): replayed through the drafter interface."""
