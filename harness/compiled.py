"""The target's forward over new tokens as one compiled program: torch.compile, the whole model or nothing.

Compiled layer by layer, the recompile limit is met silently and the other layers stay as they are; so the
graph is whole, and meeting the limit fails. Compiling takes minutes the first time; inductor keeps what it
made on disk, so that the next process needs a fraction.
On a CPU, sizes that change from round to round (drafted tokens, slots of the cache) are symbols: there is one
program for one token and one for several, by batch. On CUDA every width has its own, captured as a graph.

Shapes: B sequences, n new tokens, C allocated slots, V vocabulary.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.cache import SlotCache
from harness.config import ConfigError

_MOST_PROGRAMS = 64
"""Widths times batch sizes times slots of the cache."""


class CompiledForward:
    """Calls a model as `forward` does; compiles at the first call with one token, and with several.

    by_shape: every number of tokens, sequences and slots is a program of its own.
    """

    def __init__(self, model: Any) -> None:
        """
        Raises:
            ConfigError: there is nothing to compile with.
        """
        device = next(model.parameters()).device
        if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
            raise ConfigError(
                "target.compile=true: on a CPU needs a C++ compiler (g++, clang++); type target.compile=false"
            )
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        torch._dynamo.config.recompile_limit = _MOST_PROGRAMS
        model.requires_grad_(False)
        self._model = model
        self.by_shape = device.type != "cpu"
        options: dict[str, str | int | bool | Callable[..., Any]] = {"triton.cudagraphs": self.by_shape}
        dynamic = False if self.by_shape else None
        self._program = torch.compile(self._run, fullgraph=True, dynamic=dynamic, options=options)

    @property
    def num_compiled(self) -> int:
        """Programs that torch.compile has made in this process."""
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    def __call__(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache) -> Tensor:
        """Logits [B, n, V] of ids and positions [B, n]; mask [B, 1, n, C] over the whole cache."""
        if not self.by_shape:
            if ids.shape[1] > 1:
                for tensor, axis in ((ids, 1), (positions, 1), (mask, 2)):
                    torch._dynamo.mark_dynamic(tensor, axis)
            torch._dynamo.mark_dynamic(mask, 3)
        cache.mark(dynamic=not self.by_shape)
        logits: Tensor = self._program(ids, positions, mask, cache)
        return logits

    def _run(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache) -> Tensor:
        logits: Tensor = self._model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=0,
        ).logits
        return logits
