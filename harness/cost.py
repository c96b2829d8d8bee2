"""Profile a target and drafters: python -m harness.cost [COMMAND] target=... [method=[...]] [key=value] ...

COMMAND: table (default) writes a cost table below results/costs; parts compares rounds with their parts timed
alone; split tells operators from overhead in a draft; kernels tells kernels from the rest of a round; linear
times matrix products by layout; prompts times prefill. The last line on stdout is one JSON document: the
table's file, or the findings. Exit status: 0 good, 1 it failed, 2 the command line or a config is wrong.
"""

from __future__ import annotations

import re
import sys

import hydra
from omegaconf import DictConfig

from harness.cli import hydra_app


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="cost")
def cost(config: DictConfig) -> None:
    """Run one composed configuration."""
    from harness.benchmark.cost_job import run_costs

    run_costs(config)


def main() -> int:
    """Take a leading COMMAND for `command=COMMAND`, and run; returns the exit status."""
    if len(sys.argv) > 1 and re.fullmatch(r"[a-z]+", sys.argv[1]):
        # To the end, as Hydra takes flags only before overrides.
        sys.argv.append(f"command={sys.argv.pop(1)}")
    return hydra_app.main(cost)


if __name__ == "__main__":
    sys.exit(main())
