"""Parallel: several processes that hold one target's weights together, each a part (tensor parallelism).

All of them run the same loop on the same gathered logits with the same counter-based random numbers, so all
decide the same. The first one speaks and writes; the others, its followers, are silent.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from harness.config import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")


def num_processes() -> int:
    """As torchrun started them; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_follower() -> bool:
    """Whether this process is not the first."""
    return int(os.environ.get("RANK", "0")) > 0


def expect_processes(wanted: int) -> None:
    """Raise ConfigError unless as many processes were started as `target.tensor_parallel` wants."""
    if num_processes() == wanted:
        return
    typed = " ".join(sys.argv[1:])
    remedy = (
        f"type torchrun --nproc-per-node={wanted} -m harness.bench {typed}"
        if wanted > 1
        else f"type target.tensor_parallel={num_processes()}, or start it without torchrun"
    )
    raise ConfigError(
        f"target.tensor_parallel={wanted}: {num_processes()} processes were started, and each has to hold its"
        f" part of the target; {remedy}"
    )


def agreed(value: Value) -> Value:
    """What the first process has, in all of them: for what each measures and all must act on alike."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    told: list[Any] = [value]
    distributed.broadcast_object_list(told, src=0)
    first: Value = told[0]
    return first


def own_part(weight: Tensor) -> Tensor:
    """What this process holds of a weight."""
    if not is_shared(weight):
        return weight
    part: Tensor = weight.to_local()  # type: ignore[attr-defined]
    return part


def is_shared(weight: Tensor) -> bool:
    """Whether several processes hold it together."""
    return hasattr(weight, "placements")


def refuse_unfit(config: Any, architecture: str, wanted: int) -> None:
    """Raise ConfigError where transformers has no plan for this model, or its heads do not divide."""
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


def refuse_shared(wanted: int, command: str) -> None:
    """Raise ConfigError where a command that does not share its target was asked to."""
    if wanted > 1:
        raise ConfigError(
            f"target.tensor_parallel={wanted}: {command} does not share a target; type"
            " target.tensor_parallel=1, with target.device_map=auto where it fits no single device"
        )


def sharded(wanted: int) -> dict[str, Any]:
    """What `from_pretrained` takes to load this process's part; nothing for one process."""
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
