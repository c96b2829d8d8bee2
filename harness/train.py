"""Train a drafter: python -m harness.train method=NAME [target=...] [data=...] [key=value] ...

The same command resumes an interrupted training. The last line on stdout is one JSON document: the folder of
the head, its held-out tau, steps and tokens. Exit status: 0 success, 1 failure, 2 the command line or a
configuration is wrong.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from harness.cli import hydra_app


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="train")
def train(config: DictConfig) -> None:
    """Run one composed configuration."""
    from harness.training.job import run_training

    run_training(config)


if __name__ == "__main__":
    sys.exit(hydra_app.main(train))
