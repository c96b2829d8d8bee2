"""The files that describe a job, `.hydra/*.yaml` and `multirun.yaml`, without the secrets of the command.

Hydra would write them as they were typed. Its `output_subdir` is therefore null, and this module and
`harness.cli.redacting_sweeper` write the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typing_extensions import override

from harness.system.files import write_text
from harness.system.secrets import guard_process, learn, redact

JOB = ".hydra"
"""Folder of these files within the folder of a job."""


class JobFiles(Callback):
    """Learns the secrets of every job before it starts, in the process that runs it, and writes its files."""

    def __init__(self, write: bool = True) -> None:
        """write: whether to write the files; a training has no folder for them."""
        self._write = write

    @override
    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **_: Any) -> None:
        guard_process()
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        try:
            learn(OmegaConf.to_container(own, resolve=True))
        except OmegaConfBaseException:
            # A value is missing, which the job itself reports.
            learn(OmegaConf.to_container(own, resolve=False))
        if not self._write:
            return
        folder = Path(config.hydra.runtime.output_dir) / JOB
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (
            ("config.yaml", own),
            ("hydra.yaml", HydraConfig.instance().cfg),
            ("overrides.yaml", config.hydra.overrides.task),
        ):
            write_text(folder / name, OmegaConf.to_yaml(redacted(content)))


def redacted(config: Any) -> Any:
    """A copy of a Hydra configuration without secrets; its interpolations are not resolved."""
    return OmegaConf.create(redact(OmegaConf.to_container(config, resolve=False, enum_to_str=True)))
