"""Recorded updates of Test-Time Speculation over tables: one step, and whole answers."""
