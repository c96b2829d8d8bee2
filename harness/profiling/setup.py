"""The set-up that all commands of `python -m harness.cost` share: target, drafters, prompts and machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig

from harness.config import ConfigError, build, naming
from harness.decoding.batch import Request
from harness.decoding.forced_acceptance import Forced
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import Drafter
from harness.profiling.profile import Profile
from harness.system.machine_lock import machine_lock, units_of
from harness.system.processes import refuse_shared
from harness.target.model import Target
from harness.target.spec import LoadedWeights, TargetSpec

Finding = dict[str, Any]
"""One measured line, in JSON types; keys name the unit (`_ms`, `_s`, `_us`)."""


@dataclass(frozen=True, kw_only=True)
class ProfilingSetup:
    """A target, alone on its part of the machine, with drafters that are bound to it."""

    profile: Profile
    spec: TargetSpec
    weights: LoadedWeights
    target: Target
    drafters: dict[str, Drafter]
    note: Callable[[str], None]
    """Takes a line for the user."""

    @property
    def engine(self) -> DecodingLoop:
        """The loop over the target, without end tokens."""
        return DecodingLoop(self.target, (), self.weights.max_context)

    @property
    def acceptor(self) -> Forced:
        """Keeps `costs.tau` tokens per round, whatever the drafts hold."""
        return Forced(tau=self.profile.tau)

    def params(self, num_tokens: int | None = None) -> DecodingParams:
        """Decoding of `num_tokens` tokens at any end token (None: as many as the profile's rounds emit)."""
        count = num_tokens or self.profile.num_new_tokens
        return DecodingParams(name="greedy", max_new_tokens=count, ignore_end_token=True)

    def requests(self, batch: int) -> list[Request]:
        """Prompts of random tokens, as long as the shortest of `costs.contexts`."""
        length, vocab_size = self.profile.contexts[0], self.target.vocab_size
        return [
            Request(prompt=self.profile.ids(length, vocab_size, f"prompt {row}"), key=row)
            for row in range(batch)
        ]

    def some_drafters(self) -> dict[str, Drafter]:
        """The drafters.

        Raises:
            ConfigError: none was given.
        """
        if not self.drafters:
            raise ConfigError(
                "method=[]: this command profiles drafters; type method=[NAME], and for a drafter with a head"
                " methods.NAME.head=random if none fits the target"
            )
        return self.drafters


@contextmanager
def prepared(config: DictConfig, note: Callable[[str], None], **changes: Any) -> Iterator[ProfilingSetup]:
    """Load and bind everything that `config` (conf/cost.yaml) names, and hold the machine meanwhile.

    changes: fields of the target that a command prescribes.

    Raises:
        ConfigError: what cannot be profiled, and what to type instead.
    """
    profile: Profile = build(config.costs, "costs")
    drafters = {str(name): build(node, f"methods.{name}") for name, node in (config.methods or {}).items()}
    for name, drafter in drafters.items():
        if drafter.weighs_costs:
            raise ConfigError(
                f"methods.{name}: decides by what forwards cost, which is what python -m harness.cost has yet"
                f" to measure; leave it out with ~methods.{name}"
            )
    spec: TargetSpec = replace(build(config.target, "target"), **changes)
    refuse_shared(spec.tensor_parallel, "profiling")
    with machine_lock(units_of(spec.resolved_device(), spec.device_map is not None), True, note):
        weights = spec.load(note)
        profile.check(weights.max_context)
        target = weights.make(weights.model, spec.attention, spec.linear, spec.cache, spec.compile)
        for name, drafter in drafters.items():
            with naming(f"methods.{name}"):
                drafter.bind(target)
        target.reserve(profile.most_tokens)
        yield ProfilingSetup(
            profile=profile, spec=spec, weights=weights, target=target, drafters=drafters, note=note
        )
