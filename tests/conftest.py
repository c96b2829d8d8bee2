"""Tiny models are fastest on one thread: several mostly wait for one another."""

import os

# Before torch is imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
