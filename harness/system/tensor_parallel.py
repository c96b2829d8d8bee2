"""Tensor parallelism: one target whose weights are split among processes, as transformers plans it."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any

from harness.config import ConfigError
from harness.system.processes import is_follower

if TYPE_CHECKING:
    from torch import Tensor


def is_shared(weight: Tensor) -> bool:
    """Whether several processes hold parts of `weight`."""
    return hasattr(weight, "placements")


def own_part(weight: Tensor) -> Tensor:
    """This process's part of `weight`; all of it where it is not shared."""
    if not is_shared(weight):
        return weight
    part: Tensor = weight.to_local()  # type: ignore[attr-defined]
    return part


def refuse_unfit(config: Any, architecture: str, wanted: int) -> None:
    """Check that a model can be split among `wanted` processes.

    config: the model's configuration, of transformers. architecture: its name, for the message.

    Raises:
        ConfigError: transformers has no plan for this model, or `wanted` does not divide its heads.
    """
    shape = config.get_text_config()
    if not getattr(shape, "base_model_tp_plan", None):
        raise ConfigError(
            f"target.tensor_parallel={wanted}: transformers has no plan for {architecture}; type"
            " target.tensor_parallel=1 target.device_map=auto, which puts whole layers on several devices"
        )
    heads = {name: getattr(shape, name) for name in ("num_attention_heads", "num_key_value_heads")}
    for name, number in heads.items():
        if number % wanted:
            fitting = [n for n in range(1, 1 + min(heads.values())) if not any(h % n for h in heads.values())]
            raise ConfigError(
                f"target.tensor_parallel={wanted}: does not divide the {number} of {name}. Allowed:"
                f" {', '.join(map(str, fitting))}."
            )


def sharded(wanted: int) -> dict[str, Any]:
    """Arguments for `from_pretrained` that load this process's part; none for a single process.

    The process group that transformers starts is ended at exit.
    """
    if wanted == 1:
        return {}
    from transformers.distributed import DistributedConfig
    from transformers.utils import logging

    if is_follower():
        logging.disable_progress_bar()
    atexit.register(_end)
    return {"distributed_config": DistributedConfig(tp_size=wanted, tp_plan="auto")}


def _end() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
