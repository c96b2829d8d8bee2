"""The launchers that conf/hydra/launcher names: Hydra finds launchers only in modules of this package."""

from harness.sweeps import launchers


class Slurm(launchers.Slurm):
    """`harness.sweeps.launchers.Slurm` under a name that Hydra accepts."""


class Ray(launchers.Ray):
    """`harness.sweeps.launchers.Ray` under a name that Hydra accepts."""


class Processes(launchers.Processes):
    """`harness.sweeps.launchers.Processes` under a name that Hydra accepts."""
