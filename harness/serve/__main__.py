"""Serve our loop to OpenAI clients: python -m harness.serve [target=...] [method=[NAME]] [key=value] ...

The first line on stdout is a JSON document with the URL, once the server listens. Ctrl-C ends it. It listens
on the loopback interface unless serve.host says otherwise. Exit status: 0 ended by the user, 2 a config is
wrong.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from harness.cli import hydra_app
from harness.config import ConfigError


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="serve")
def serve(config: DictConfig) -> None:
    """Run one composed configuration."""
    try:
        from harness.serve.job import run_server
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed, and a server needs it; type"
            " pip install 'specbench-harness[server]'"
        ) from error

    run_server(config)


def main() -> int:
    """Serve until the user ends it; the exit status."""
    return hydra_app.main(serve)


if __name__ == "__main__":
    sys.exit(main())
