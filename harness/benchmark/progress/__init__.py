"""The progress of a benchmark while it is measured: a table on a terminal, elsewhere lines."""

from harness.benchmark.progress.run_progress import RunProgress
from harness.benchmark.progress.scoreboard import Scoreboard

__all__ = ["RunProgress", "Scoreboard"]
