"""Profile a target and drafters: python -m harness.cost target=... [method=[...]] [key=value] ...

Writes a cost table below results/costs. The last line on stdout is one JSON document: the file of the table
and its content. Exit status: 0 success, 1 the profile failed, 2 the command line or the configuration is
wrong.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from harness.cli import hydra_app


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="cost")
def cost(config: DictConfig) -> None:
    """Run one composed configuration."""
    from harness.benchmark.cost_job import run_costs

    run_costs(config)


if __name__ == "__main__":
    sys.exit(hydra_app.main(cost))
