"""Hydra's sweeper, which writes `multirun.yaml` without the secrets of the command.

Only the plugin imports this module: Hydra executes the module of its own sweeper when it looks for plugins,
and a subclass from before that would no longer be one of that class.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

from harness.cli.job_files import redacted


class RedactingBasicSweeper(BasicSweeper):
    """Hydra's sweeper, which writes `multirun.yaml` without secrets."""

    @override
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._given = config
        # The first look fixes the time in the folder's name, which the copy and all jobs must share.
        str(config.hydra.sweep.dir)
        self.config = redacted(config)
        OmegaConf.copy_cache(from_config=config, to_config=self.config)

    @override
    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        written, self.config = self.config, self._given
        try:
            super().validate_batch_is_legal(batch)
        finally:
            self.config = written
