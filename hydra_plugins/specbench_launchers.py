"""The launchers and the sweeper that conf/hydra names: Hydra finds them only in modules of this package."""

from harness.cli import redacting_sweeper
from harness.sweeps import launchers


class Slurm(launchers.Slurm):
    """`harness.sweeps.launchers.Slurm` under a name that Hydra accepts."""


class Ray(launchers.Ray):
    """`harness.sweeps.launchers.Ray` under a name that Hydra accepts."""


class Processes(launchers.Processes):
    """`harness.sweeps.launchers.Processes` under a name that Hydra accepts."""


class RedactingBasicSweeper(redacting_sweeper.RedactingBasicSweeper):
    """`harness.cli.redacting_sweeper.RedactingBasicSweeper` under a name that Hydra accepts."""
