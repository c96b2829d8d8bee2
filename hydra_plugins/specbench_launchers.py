"""What conf/hydra/launcher names: Hydra takes launchers from modules of this package only."""

from harness.sweeps import launchers


class Slurm(launchers.Slurm):
    """See `harness.sweeps.launchers`."""


class Ray(launchers.Ray):
    """See `harness.sweeps.launchers`."""


class Processes(launchers.Processes):
    """See `harness.sweeps.launchers`."""
