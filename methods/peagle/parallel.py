"""P-EAGLE: an EAGLE-3 head that drafts a chain in one causal call.

P-EAGLE (AWS 2026, arXiv 2602.01469). The rows of a call are the pairs of true features and next tokens, of
which the last one drafts the first token, then rows of a learned hidden state and the mask token, which draft
the others. Only the pairs stay in the cache.

Shapes: B sequences, m pairs, k drafted tokens, n rows of a call, F width of the target's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, HiddenTap, Outcome, TargetView
from harness.runtime.attention import grouped, tree_mask
from harness.runtime.write_plan import WritePlan
from methods.peagle.network import PEagleNetwork, load_network, random_network
from methods.peagle.waiting import Waiting
from methods.shared.block.chains import Noise, chain_of
from methods.shared.block.draw import pick
from methods.shared.eagle.heads.base import AuxLayers

_CHUNK = 1024
"""Pairs of a prompt that are fed at once; their mask is quadratic."""


@configurable
class ParallelDrafter(Drafter):
    """Drafts chains with an EAGLE-3 head that was trained to fill mask tokens."""

    head: str | None = None
    """A folder, a hub id, or `random`: weights from `seed`, which draft badly and serve to measure time
    alone."""
    revision: str | None = None
    dtype: Literal["target", "float32", "bfloat16", "float16"] = "target"
    """The head's dtype; `target` takes the target's."""
    draft_length: int = Field(default=7, ge=1)
    """Tokens of a draft, k."""
    temperature: float = Field(default=0.0, ge=0, le=100)
    """At which tokens are drawn; 0 takes the likeliest."""
    aux_layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    """The tapped blocks; None takes the checkpoint's, else EAGLE-3's."""
    aux_convention: Literal["input", "output"] = "input"
    """Whether the numbers of blocks name their inputs, as speculators and vLLM write them, or their
    outputs."""
    mask_token_id: int | None = Field(default=None, ge=0)
    """The mask token; None: the checkpoint's, or the last id for a random head."""
    num_layers: int = Field(default=4, ge=1)
    """Layers of a random head."""
    seed: int = Field(default=0, ge=0)
    """Decides random weights and the noise that tokens are drawn with."""
    draft_vocab_size: int | None = Field(default=None, ge=1)
    """Draft vocabulary of a random head; None is the target's whole vocabulary."""

    @override
    def bind(self, target: TargetView) -> None:
        """Load the head.

        Raises:
            ConfigError: there is no such head, or it does not fit the target.
        """
        super().bind(target)
        self.network, self.mask, self._card = self._load(target)
        shape, config = self.network.shape, target.config
        for name, ours, theirs in (
            ("hidden size", shape.target_hidden_size, config.hidden_size),
            ("vocabulary", shape.vocab_size, target.vocab_size),
        ):
            if ours != theirs:
                raise ConfigError(f"head={self.head}: is for {name} {ours}, the target has {theirs}.")
        aux = AuxLayers(
            chosen=self.aux_layers,
            written=tuple(self._card.get("aux_layers", ())) or None,
            convention=self.aux_convention,
        )
        self._taps = self.network.head.taps(config.num_hidden_layers, aux)
        if len(self._taps) != shape.num_taps:
            raise ConfigError(
                f"aux_layers: {len(self._taps)} layers are named, but the fc of the head {self.head} reads"
                f" {shape.num_taps}"
            )
        target.prepare(self.network)
        self._cache, self._noise = target.new_cache(), Noise(self.seed)

    @property
    @override
    def taps(self) -> tuple[HiddenTap, ...]:
        return self._taps

    @property
    @override
    def num_drafted(self) -> int | None:
        return self.draft_length

    @property
    @override
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.network.parameters(), *self.network.buffers()))

    @override
    def card(self) -> dict[str, Any]:
        taps = [[tap.layer, tap.point] for tap in self._taps]
        return {**self._card, "taps": taps, "num_layers": 1 + len(self.network.more)}

    @override
    def rehearse(self, num_rows: int, context: int) -> Callable[[int], None]:
        """Time the head over mask rows behind a filled cache."""
        self.reset(num_rows)
        self._waiting.add(torch.ones(num_rows, context, self._width), [[1] * context] * num_rows)
        self._run(0)

        def call(num_tokens: int) -> None:
            self._run(num_tokens)

        return call

    @override
    def warm_up(self, num_rows: int) -> None:
        self.reset(num_rows)
        self._waiting.add(torch.ones(num_rows, 1, self._width), [[1]] * num_rows)
        self.propose([0] * num_rows)

    @override
    def reset(self, num_rows: int) -> None:
        self._cache.clear(num_rows)
        self._noise.reset(num_rows)
        self._waiting = Waiting(num_rows, self.network.mask_hidden[0])

    @override
    def observe(self, outcome: Outcome) -> None:
        """Keep the pairs of a true feature and the token after it for the next draft."""
        following = [
            [*committed[1:], pending]
            for committed, pending in zip(outcome.committed, outcome.pending, strict=True)
        ]
        counts, features = [len(tokens) for tokens in following], torch.cat(outcome.taps, dim=-1)
        if outcome.rows is None:
            self._waiting.add(features, following)
            return
        for place, row in enumerate(outcome.rows):
            self._cache.lengths[row] = self._waiting.counts[row] = 0
            self._noise.renew(row)
            self._waiting.put(row, features[place, : counts[place]], following[place])

    @torch.no_grad()
    @override
    def propose(self, room: Sequence[int]) -> Draft:
        # The room is ignored: up to the last round, the chain is the one that the official code would draft.
        lengths = [known + new for known, new in zip(self._cache.lengths, self._waiting.counts, strict=True)]
        states = self._run(self.draft_length - 1)
        logits = self.network.logits(states, self._target).float()
        noise = None
        if self.temperature:
            noise = self._noise.draw(lengths, self.draft_length).to(logits.device)
        chosen, likely, probs = pick(logits, self.temperature, noise)
        self.logits = logits
        return chain_of(self.network.head.target_ids(chosen), likely, self._spread(probs))

    @override
    def keep(self, rows: Sequence[int]) -> None:
        kept = list(rows)
        self._cache.keep(kept)
        self._noise.keep(rows)
        self._waiting.keep(kept)

    @property
    def _width(self) -> int:
        return self.network.shape.feature_size

    @torch.no_grad()
    def _run(self, num_masks: int) -> Tensor:
        """Feed what waits, then mask rows; states [B, 1 + num_masks, H] that draft, of which none stays."""
        waiting = self._waiting
        while max(waiting.counts) > _CHUNK:
            # The last pair of a sequence stays for the call that drafts.
            self._forward([max(min(count - 1, _CHUNK), 0) for count in waiting.counts], 0)
        return self._forward(waiting.counts, num_masks)

    def _forward(self, counts: Sequence[int], num_masks: int) -> Tensor:
        """One call over the first `counts[b]` waiting pairs of each sequence, then mask rows.

        Every sequence has its own number of pairs, so rows past a sequence's masks are padding.
        """
        device, most = self._target.device, max(counts)
        width = max(most, 1) + num_masks
        rows = torch.arange(width, device=device)
        pairs = torch.tensor(list(counts)).to(device, non_blocking=True)[:, None]
        masked = rows >= pairs
        features = pad(self._waiting.features[:, :most], (0, 0, 0, width - most))
        tokens = torch.where(masked, self.mask, pad(self._waiting.tokens[:, :most], (0, width - most)))
        cache = self._cache
        positions = cache.base(device)[:, None] + rows
        tree = torch.ones(width, width, dtype=torch.bool, device=device).tril().expand(len(counts), -1, -1)
        cache.aim(WritePlan.decode(cache.lengths, slice(0, len(counts)), width, device))
        mask = tree_mask(cache.lengths, tree)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = cache.update(key, value, layer)
            return grouped(self.network, query, keys, values, mask)[0]

        states = self.network(features, tokens, masked, positions, self._target, attend)
        cache.advance(counts)
        self._waiting.drop(counts)
        last = (pairs - 1).clamp(min=0) + torch.arange(1 + num_masks, device=device)
        wanted: Tensor = states.gather(1, last[..., None].expand(-1, -1, states.shape[-1]))
        return wanted

    def _spread(self, probs: Tensor | None) -> Tensor | None:
        """Probabilities over the draft vocabulary as ones over the target's, [B, k, V]."""
        shape = self.network.shape
        if probs is None or shape.draft_vocab_size == shape.vocab_size:
            return probs
        ids = self.network.head.target_ids(torch.arange(shape.draft_vocab_size, device=probs.device))
        return probs.new_zeros(*probs.shape[:-1], shape.vocab_size).scatter(-1, ids.expand_as(probs), probs)

    def _load(self, target: TargetView) -> tuple[PEagleNetwork, int, dict[str, Any]]:
        dtype: torch.dtype = target.dtype if self.dtype == "target" else getattr(torch, self.dtype)
        if self.head is None:
            raise ConfigError(
                "head: none is known for this target; give a P-EAGLE head with methods.peagle.head=FOLDER (or"
                " a hub id ORG/NAME), or `random` to measure the shape alone"
            )
        if self.head != "random":
            return load_network(self.head, self.revision, self.mask_token_id, dtype, target.device)
        size = self.draft_vocab_size
        return random_network(target, self.num_layers, self.mask_token_id, dtype, self.seed, size)
