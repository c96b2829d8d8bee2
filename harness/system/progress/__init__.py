"""Progress of long operations: what is done, and how long the rest takes."""

from harness.system.progress.display import Display
from harness.system.progress.waits import Wait, waiting, watched_by

__all__ = ["Display", "Wait", "waiting", "watched_by"]
