"""Measure speedup and acceptance length: python -m harness.bench [--multirun] [group=option] [key=value] ...

The last line on stdout is one JSON document with a row per method; all else goes to stderr. Exit status:
0 good, 1 a run failed or a verdict is `broken`, 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from harness.cli import hydra_app


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="bench")
def bench(config: DictConfig) -> None:
    """One composed configuration."""
    hydra_app.run_job(config)


def main() -> None:
    """The script `specbench`: the shell can complete a command of one word only."""
    sys.exit(hydra_app.main(bench))


if __name__ == "__main__":
    main()
