"""About how long a run takes and how much memory it needs, and the basis of this estimate.

The basis is stored runs of the same target on the same machine where there are any, else rules that need only
the model's shape. No weights are read and nothing is timed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from harness.analysis import metrics
from harness.benchmark.plan import Plan, make_cell
from harness.config import ConfigError
from harness.decoding.sampling import DecodingParams
from harness.runtime.attention import Window
from harness.store.records import Cell, GenerationRecord, Run
from harness.system.naming import class_names
from harness.system.probes import last_level_cache_bytes
from harness.system.provenance import device_identity
from harness.target.footprint import expert_counts, step_bytes

_BANDWIDTH = {"cpu": 10e9, "cuda": 1e12}
"""Assumed read bandwidth in bytes per second, where no run of this machine has probed it."""
_SHARE_OF_ROOF = 0.3
"""The share of that bandwidth that plain decoding is assumed to reach."""
_PROMPT_TOKENS = 1024
_PROCESS_BYTES = 600 * 2**20
"""A Python process that has imported torch and transformers."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run takes; None where it is unknown."""

    seconds: float | None
    """Seconds of the generations alone, without loading, warm-up and verdicts."""
    memory_bytes: int | None
    """At the most."""
    basis: str
    """What both are concluded from, for people."""


class Estimator:
    """Estimates for the runs of one plan."""

    def __init__(self, plan: Plan, runs: Sequence[Run], device: dict[str, Any]) -> None:
        """runs: all stored runs. device: `Engine.device_facts` of the machine that would decode."""
        self.plan, self._type = plan, str(device["type"])
        here = device_identity(device)
        self._here = [
            run for run in runs if device_identity(run.manifest.provenance.get("device") or {}) == here
        ]

    def estimate(self, params: DecodingParams, num_prompts: int) -> Estimate:
        """Estimate answering `num_prompts` prompts with every arm and rung, as often as the plan asks."""
        records = self._known(params)
        seconds, time_basis = self._seconds(params, num_prompts, [one for one in records if one.timed])
        peaks = [one.peak_memory_bytes for one in records if one.peak_memory_bytes]
        memory, memory_basis = (max(peaks), "the most of stored runs") if peaks else self._memory(params)
        basis = f"time: {time_basis}; memory: {memory_basis}"
        return Estimate(seconds=seconds, memory_bytes=memory, basis=basis)

    def _known(self, params: DecodingParams) -> list[GenerationRecord]:
        """Records of this target and batch size: of the same task and decoding if there are any, else all."""
        runs = [
            run
            for run in self._here
            if class_names(run.manifest.config.get("target")) == class_names(self.plan.config["target"])
            and run.manifest.cell.batch_size == self.plan.measure.batch_size
        ]
        cell = make_cell(self.plan, params)
        own = [run for run in runs if _is_like(run.manifest.cell, cell) and run.records]
        return [record for run in own or runs for record in run.records]

    def _seconds(
        self, params: DecodingParams, num_prompts: int, timed: list[GenerationRecord]
    ) -> tuple[float | None, str]:
        cap = params.max_new_tokens
        rate, length, basis = metrics.tokens_per_s(timed), float(cap), "as stored runs of this target went"
        if timed:
            # Answers that were cut off are assumed to reach a longer cap, too.
            length = sum(_length(record, cap) for record in timed) / len(timed)
        if math.isnan(rate):
            rate, basis = self._ruled_rate()
        if math.isnan(rate):
            return None, basis
        repeats = self.plan.repeats(params)
        own = {name: metrics.tokens_per_s([one for one in timed if one.arm == name]) for name in repeats}
        per_token = sum(num / (rate if math.isnan(own[name]) else own[name]) for name, num in repeats.items())
        return num_prompts * len(params.seeds) * length * per_token, basis

    def _ruled_rate(self) -> tuple[float, str]:
        """Tokens per second by the bytes that one step reads."""
        if self._skeleton is None:
            return math.nan, self._why_not
        probed = [probe.read_bandwidth for run in self._here for probe in run.probes]
        bandwidth = max(probed, default=_BANDWIDTH.get(self._type, _BANDWIDTH["cpu"]))
        read = step_bytes(self._skeleton, expert_counts(self._skeleton.config.get_text_config()))
        source = "as probed here before" if probed else "assumed"
        basis = (
            "every answer reaches the cap, every method is as fast as vanilla, and vanilla reaches"
            f" {_SHARE_OF_ROOF:.0%} of reading {read / 1e9:.3g} GB a token at {bandwidth / 1e9:.3g} GB/s"
            f" ({source})"
        )
        return _SHARE_OF_ROOF * bandwidth / read * self.plan.measure.batch_size, basis

    def _memory(self, params: DecodingParams) -> tuple[int | None, str]:
        """Bytes of the weights, the cache of a batch and the buffer of the bandwidth probe."""
        if self._skeleton is None:
            return None, self._why_not
        weights = sum(parameter.nbytes for parameter in self._skeleton.parameters())
        context = _PROMPT_TOKENS + params.max_new_tokens
        cache = _cache_bytes(self._skeleton, context) * self.plan.measure.batch_size
        gib = self.plan.measure.bandwidth_gib
        buffer = max(2**30, 4 * last_level_cache_bytes()) if gib is None else int(gib * 2**30)
        process = _PROCESS_BYTES if self._type == "cpu" else 0
        total = weights + cache + buffer * self.plan.measure.timed + process
        return total, f"weights, a cache of {context} tokens, the bandwidth probe; draft heads not counted"

    @cached_property
    def _skeleton(self) -> Any:
        """The model without weights; None where its configuration is out of reach, or it runs elsewhere."""
        if not self.plan.engine.in_process:
            self._why_not = f"no run with engine={self.plan.engine.name} is stored"
            return None
        try:
            config = self.plan.target.shape()
            return self.plan.target.random_model(config, torch.device("meta"))
        except ConfigError as error:
            self._why_not = str(error)
            return None

    _why_not = ""


def _cache_bytes(model: Any, context: int) -> int:
    """Bytes of a sequence's keys and values, from the shape alone: a model without weights cannot write them.

    context: its tokens, of which layers with a sliding window keep some.
    """
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    window = Window.of(config)
    num_rows = sum(
        min(context, window.num_slots) if window and window.holds_in(layer) else context
        for layer in range(config.num_hidden_layers)
    )
    return int(2 * num_rows * num_heads * head_dim * model.dtype.itemsize)


def _length(record: GenerationRecord, cap: int) -> int:
    """Tokens that this answer would have under another cap."""
    return cap if record.stop == "cap" or len(record.output_ids) > cap else len(record.output_ids)


def _is_like(stored: Cell, cell: Cell) -> bool:
    return (stored.task, stored.decoding) == (cell.task, cell.decoding)
