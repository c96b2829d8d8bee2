"""The machine below the benchmark: clock, probes, processes, locks, files, console and provenance.

Knows nothing of decoding.
"""
