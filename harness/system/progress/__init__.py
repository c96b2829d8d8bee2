"""Progress of long operations: what is done, and how long the rest takes.

What is imported here needs no package, so that the installation of the packages can report itself.
"""

from harness.system.progress.waits import Wait, waiting, watched_by

__all__ = ["Wait", "waiting", "watched_by"]
