"""SpS: a second, smaller language model drafts a chain.

Speculative sampling, Leviathan et al. 2023 (arXiv 2211.17192) and Chen et al. 2023 (arXiv 2302.01318), with
the constants of transformers' assisted generation (4.53.1) that SpecTTS-Bench uses: at most 20 tokens, and
none after one that the draft model gave less than 0.4.

At `temperature` 0 the likeliest tokens are drafted; above, tokens are drawn, and the distribution that each
was drawn from is stated, because `accept=rejection` divides by it. Every sequence has draws of its own: if
the same text always drafted the same token, that token would be kept too often.

`model=first_layers` makes a draft model of the target's first blocks with the target's own LM head. It is not
trained to stop there and guesses badly; it serves where no smaller model of the family can be had.
Sequences are drafted one after the other.

Shapes: B sequences, n drafted nodes, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import DynamicCache
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.draft import Draft
from harness.drafting.drafter import TargetView
from harness.drafting.sequence_drafter import PerSequenceDrafter
from methods.sps.draft_model import fingerprint, load_model


@dataclass
class _State:
    number: int
    """Counts the sequences; the noise of a draft depends on it."""
    cache: DynamicCache = field(default_factory=DynamicCache)
    cached: list[int] = field(default_factory=list)
    """The tokens that the draft model's cache holds, drafted ones included."""


@dataclass
class _Chain:
    tokens: list[int]
    confidence: list[float]
    """The product of the draft model's probabilities down to each token."""
    probs: list[Tensor]
    """What each token was drawn from [V]; empty at temperature 0."""


@configurable
class SpS(PerSequenceDrafter):
    """Drafts a chain with a second model."""

    model: str | None = None
    """A folder or a hub id, `first_layers` of the target, or `random`: weights from `seed`, which draft badly
    and serve to measure time alone."""
    revision: str | None = None
    num_layers: int = Field(default=8, ge=1)
    """Blocks of `first_layers` and `random`."""
    dtype: Literal["target", "float32", "bfloat16", "float16"] = "target"
    """The draft model's dtype; `target` takes the target's."""
    draft_length: int = Field(default=20, ge=1)
    """Most tokens of a draft."""
    min_confidence: float = Field(default=0.4, ge=0, le=1)
    """The draft ends behind a token to which the draft model gives less; 0 never ends it early."""
    temperature: float = Field(default=0.0, ge=0, le=100)
    """At which tokens are drawn; 0 takes the likeliest."""
    seed: int = Field(default=0, ge=0)

    @override
    def bind(self, target: TargetView) -> None:
        """Load the draft model.

        Raises:
            ConfigError: there is none, or it does not fit the target.
        """
        super().bind(target)
        if self.model is None:
            raise ConfigError(
                "model: no draft model is known for this target; give one with its tokenizer by"
                " methods.sps.model=FOLDER (or a hub id ORG/NAME), or type methods.sps.model=first_layers for"
                " the first blocks of the target itself"
            )
        dtype: torch.dtype = target.dtype if self.dtype == "target" else getattr(torch, self.dtype)
        self._model = load_model(self.model, self.revision, self.num_layers, self.seed, target, dtype)
        self._card = {"weights": fingerprint(self._model)}
        self._num_begun = 0
        target.prepare(self._model, "model")

    @property
    @override
    def num_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self._model.parameters())

    @override
    def card(self) -> dict[str, Any]:
        layers = self._model.config.num_hidden_layers
        return {"model": self.model, "num_layers": layers, "num_bytes": self.num_bytes, **self._card}

    @override
    def rehearse(self, num_rows: int, context: int) -> Callable[[int], None]:
        """Time the draft model over new tokens behind a filled cache."""
        cache, device = DynamicCache(), self._target.device
        ids = torch.ones(num_rows, context, dtype=torch.int64, device=device)
        with torch.no_grad():
            self._model(ids, past_key_values=cache, logits_to_keep=1)

        def call(num_tokens: int) -> None:
            with torch.no_grad():
                self._model(ids[:, :1].expand(-1, num_tokens), past_key_values=cache)
            _drop_last(cache, num_tokens)

        return call

    @override
    def start_one(self) -> _State:
        self._num_begun += 1
        return _State(self._num_begun)

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        device = self._target.device
        chains = [
            self._chain(context, state, min(self.draft_length, limit))
            for context, state, limit in zip(self._contexts, self._states, room, strict=True)
        ]
        width = max(len(chain.tokens) for chain in chains)
        if width == 0:
            return Draft.empty(len(chains), device)
        tokens = torch.tensor([chain.tokens + [0] * (width - len(chain.tokens)) for chain in chains])
        size = torch.tensor([len(chain.tokens) for chain in chains], device=device)
        draft = Draft.chain(tokens.to(device), size)
        confidence = [chain.confidence + [0.0] * (width - len(chain.tokens)) for chain in chains]
        probs = None
        if self.temperature:
            probs = torch.zeros(len(chains), width, self._target.vocab_size, device=device)
            for row, chain in enumerate(chains):
                for place, drawn_from in enumerate(chain.probs):
                    probs[row, place] = drawn_from
        return Draft(
            tokens=draft.tokens,
            parents=draft.parents,
            size=draft.size,
            is_chain=True,
            confidence=torch.tensor(confidence, device=device),
            probs=probs,
        )

    @torch.no_grad()
    def _chain(self, context: Sequence[int], state: _State, limit: int) -> _Chain:
        """At most `limit` tokens; the cache keeps what it holds of the text."""
        chain = _Chain([], [], [])
        if limit == 0:
            return chain
        known = _common(state.cached, context[:-1])
        _drop_last(state.cache, len(state.cached) - known)
        state.cached, fresh = list(context[:known]), list(context[known:])
        random = self._random(state.number, context) if self.temperature else None
        likely = 1.0
        for _ in range(limit):
            logits = self._logits(fresh, state)
            drawn_from = torch.softmax(logits / (self.temperature or 1.0), dim=-1)
            if random is None:
                token = int(drawn_from.argmax())
            else:
                token = _drawn(drawn_from, random.random())
                chain.probs.append(drawn_from)
            confidence = float(drawn_from[token])
            likely *= confidence
            chain.tokens.append(token)
            chain.confidence.append(likely)
            if confidence < self.min_confidence:
                break
            fresh = [token]
        return chain

    def _logits(self, fresh: list[int], state: _State) -> Tensor:
        """Logits [V] after these tokens, float32."""
        ids = torch.tensor([fresh], device=self._target.device)
        made = self._model(ids, past_key_values=state.cache, use_cache=True, logits_to_keep=1)
        state.cached += fresh
        logits: Tensor = made.logits[0, -1].float()
        return logits

    def _random(self, number: int, context: Sequence[int]) -> np.random.Generator:
        """The noise of a draft: a function of the sequence's number and of its text so far."""
        text = np.asarray([number, *context], dtype=np.int64).tobytes()
        digest = hashlib.blake2b(text, digest_size=8, key=self.seed.to_bytes(8, "little")).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _drop_last(cache: DynamicCache, count: int) -> None:
    """Forget the last `count` tokens."""
    if count:
        cache.crop(-count)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _drawn(probs: Tensor, uniform: float) -> int:
    """The token at this point of the cumulative distribution; always one with a probability above 0."""
    cumulative = probs.double().cumsum(-1)
    place = int(torch.searchsorted(cumulative, cumulative.new_tensor(uniform) * cumulative[-1], right=True))
    last = int(probs.nonzero()[-1])
    return min(place, last)
