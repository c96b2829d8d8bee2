"""Measure speedup and acceptance length: python -m harness.bench [--multirun] [group=option] [key=value] ...

The last line on stdout is one JSON document with a row per method; everything else goes to stderr. Exit
status: 0 success, 1 a run failed or a verdict is `broken`, 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from harness.cli import hydra_app


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="bench")
def bench(config: DictConfig) -> None:
    """Run one composed configuration."""
    hydra_app.run_job(config)


def main() -> None:
    """Entry point of the script `specbench`, which exists because shells complete only one-word commands."""
    sys.exit(hydra_app.main(bench))


if __name__ == "__main__":
    main()
