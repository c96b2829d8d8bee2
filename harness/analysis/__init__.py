"""Turns records into numbers: metrics, intervals, tie rates and rows, and decides which runs compare."""
