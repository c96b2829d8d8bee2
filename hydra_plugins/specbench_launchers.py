"""The launchers and the sweeper that conf/hydra names: Hydra finds them only in modules of this package."""

from harness.cli import job_files
from harness.sweeps import launchers


class Slurm(launchers.Slurm):
    """`harness.sweeps.launchers.Slurm` under a name that Hydra accepts."""


class Ray(launchers.Ray):
    """`harness.sweeps.launchers.Ray` under a name that Hydra accepts."""


class Processes(launchers.Processes):
    """`harness.sweeps.launchers.Processes` under a name that Hydra accepts."""


class RedactingBasicSweeper(job_files.RedactingBasicSweeper):
    """`harness.cli.job_files.RedactingBasicSweeper` under a name that Hydra accepts."""
