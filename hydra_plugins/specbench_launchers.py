"""What conf/hydra/launcher names: Hydra takes launchers from modules of this package only."""

from harness import launchers


class Slurm(launchers.Slurm):
    """See `harness.launchers`."""


class Ray(launchers.Ray):
    """See `harness.launchers`."""


class Processes(launchers.Processes):
    """See `harness.launchers`."""
