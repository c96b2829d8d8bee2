"""Hybrid: a router between two drafters, which asks the second one where the first one drafts nothing.

SAM[EAGLE-3] of SpecTTS-Bench (arXiv 2509.04474; the router of SAM Decoding, arXiv 2411.10666) is the default:
a chain from the text where its last 5 tokens or more stood before, else EAGLE-3's tree. The first drafter
decides by its own settings whether it has a draft; any two methods can be combined.

Both drafters observe every round, whoever drafted it. A draft head is fed what it missed when it drafts next;
the authors' code feeds at most the last 40 of more than 80 missed tokens, which `waiting_pairs` of the EAGLE
methods sets. Departures: that code drops the head's cache at every call that it keeps the automaton for, as
this loop does for every sequence, and protects a prompt from being cut by the id of the chat's first token,
where here no prompt is cut. Where sequences are decoded together and one of them asks the second drafter, it
drafts for all, and the others' drafts are dropped.

Shapes: B sequences, n drafted nodes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from typing_extensions import override

from harness.config import ConfigError, configurable, naming
from harness.drafting.draft import Draft
from harness.drafting.drafter import SCOPES, Drafter, Outcome, Scope, Tap, TargetView
from harness.drafting.step_costs import StepCosts


@configurable
class Hybrid(Drafter):
    """Drafts with the first drafter that has a draft."""

    first: Drafter | None = None
    """Asked in every round."""
    second: Drafter | None = None
    """Asked where the first one drafts nothing."""

    @property
    def _parts(self) -> dict[str, Drafter]:
        named = {"first": self.first, "second": self.second}
        for name, part in named.items():
            if part is None:
                raise ConfigError(
                    f"{name}: a router needs two drafters; choose one by the name of its method with"
                    f" methods.hybrid.{name}=NAME, as in methods.hybrid.{name}=token_recycling"
                )
        return {name: part for name, part in named.items() if part is not None}

    @property
    @override
    def scope(self) -> Scope:
        """The narrowest scope of the parts that remember, so that none remembers for longer than it says."""
        scopes = {part.effective_scope for part in (self.first, self.second) if part is not None}
        return min(scopes - {"round"} - {"call"} or {"call"}, key=SCOPES.index)

    @property
    @override
    def corpus(self) -> str | None:
        names = [part.corpus for part in (self.first, self.second) if part and part.corpus]
        return " and ".join(names) or None

    @property
    @override
    def taps(self) -> tuple[Tap, ...]:
        return tuple(tap for part in self._parts.values() for tap in part.taps)

    @property
    @override
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self._parts.values())

    @override
    def bind(self, target: TargetView) -> None:
        """Bind both drafters.

        Raises:
            ConfigError: one is missing, cannot sample, shortens its drafts by a policy of its own, or does
                not fit the target.
        """
        super().bind(target)
        for name, part in self._parts.items():
            if part.policy.shortens:
                raise ConfigError(
                    f"{name}.policy: a part of a router drafts at full length; give the router the policy,"
                    " with methods.hybrid.policy"
                )
            if not part.samples:
                raise ConfigError(f"{name}: {type(part).__name__} is defined at temperature 0 alone")
            with naming(name):
                part.bind(target)
        self._drafted: Drafter | None = None

    @override
    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        for name, part in self._parts.items():
            with naming(name):
                part.check(prompts)

    @property
    @override
    def weighs_costs(self) -> bool:
        return super().weighs_costs or any(part.weighs_costs for part in self._parts.values())

    @override
    def use_costs(self, costs: StepCosts, num_rows: int) -> None:
        super().use_costs(costs, num_rows)
        for part in self._parts.values():
            part.use_costs(costs, num_rows)

    @override
    def warm_up(self, num_rows: int) -> None:
        for part in self._parts.values():
            part.warm_up(num_rows)

    @override
    def card(self) -> dict[str, Any]:
        return {name: card for name, part in self._parts.items() if (card := part.card())}

    @property
    @override
    def training_prompts(self) -> Sequence[Path]:
        return [file for part in self._parts.values() for file in part.training_prompts]

    @override
    def new_call(self, keep_memory: bool) -> None:
        for part in self._parts.values():
            part.new_call(keep_memory and part.effective_scope in ("question", "process"))

    @override
    def reset(self, num_rows: int) -> None:
        for part in self._parts.values():
            part.reset(num_rows)

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        first, second = self._parts.values()
        draft = first.propose(room)
        has_room = torch.tensor([limit > 0 for limit in room], device=draft.size.device)
        # No drafter has anything to say where there is no room.
        empty = (draft.size == 0) & has_room
        self._drafted = first
        if not bool(empty.any()):
            return draft
        other = second.propose(room)
        if bool(empty.all()):
            self._drafted = second
            return other
        # Nobody's riders: they would have to be the same for all sequences.
        self._drafted = None
        return merged(draft, other, empty, self._target.vocab_size)

    @override
    def observe(self, outcome: Outcome) -> None:
        begin = 0
        for part in self._parts.values():
            end = begin + len(part.taps)
            riders = outcome.rider_logits if part is self._drafted else None
            part.observe(replace(outcome, taps=outcome.taps[begin:end], rider_logits=riders))
            begin = end

    @override
    def keep(self, rows: Sequence[int]) -> None:
        for part in self._parts.values():
            part.keep(rows)


def merged(draft: Draft, other: Draft, others: Tensor, vocab_size: int) -> Draft:
    """The trees of `draft`, but those of `other` in the rows that are marked in `others` [B] bool."""
    width = max(draft.width, other.width)
    draft, other = draft.padded(width), other.padded(width)

    def chosen(one: Tensor, two: Tensor) -> Tensor:
        return torch.where(others.view(-1, *[1] * (one.ndim - 1)), two, one)

    probs = None
    if draft.probs is not None or other.probs is not None:
        # A token that was not sampled was certain.
        certain = [
            one_hot(one.tokens, vocab_size).float() if one.probs is None else one.probs.float()
            for one in (draft, other)
        ]
        probs = chosen(*certain)
    confidence = None
    if draft.confidence is not None and other.confidence is not None:
        confidence = chosen(draft.confidence, other.confidence)
    levels = (draft.num_levels, other.num_levels)
    chains = [one.width if one.is_chain else None for one in (draft, other)]
    known = [level if level is not None else chain for level, chain in zip(levels, chains, strict=True)]
    return Draft(
        tokens=chosen(draft.tokens, other.tokens),
        parents=chosen(draft.parents, other.parents),
        size=chosen(draft.size, other.size),
        probs=probs,
        confidence=confidence,
        is_chain=draft.is_chain and other.is_chain,
        num_levels=None if None in known else max(level for level in known if level is not None),
    )
