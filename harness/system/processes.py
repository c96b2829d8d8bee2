"""Ranks of the processes that torchrun started together, which of them speaks, and what they agree on.

All of them run the same loop on the same gathered logits with the same counter-based random numbers, so they
all make the same decisions. The first process prints and writes; the others, its followers, are silent.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TypeVar

from harness.config import ConfigError

Value = TypeVar("Value")


def num_processes() -> int:
    """Number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_follower() -> bool:
    """Whether this process is not the first one."""
    return int(os.environ.get("RANK", "0")) > 0


def expect_processes(wanted: int) -> None:
    """Check that there is one process for each part of the target.

    wanted: the value of `target.tensor_parallel`.

    Raises:
        ConfigError: more or fewer processes were started.
    """
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


def refuse_shared(wanted: int, command: str) -> None:
    """Check that a command which cannot share its target is not asked to.

    wanted: the value of `target.tensor_parallel`. command: its name, for the message.

    Raises:
        ConfigError: `wanted` is above 1.
    """
    if wanted > 1:
        raise ConfigError(
            f"target.tensor_parallel={wanted}: {command} does not share a target; type"
            " target.tensor_parallel=1, with target.device_map=auto where it fits no single device"
        )


def agreed(value: Value) -> Value:
    """The first process's `value`, in every process.

    For measured values on which all processes must base the same decision.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    shared: list[Any] = [value]
    distributed.broadcast_object_list(shared, src=0)
    first: Value = shared[0]
    return first
