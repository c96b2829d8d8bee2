"""How the next token is drawn: temperature, filters and counter-based noise (coupled sampling).

One rule serves every temperature: the token after a row of logits is `argmax(processed logits + g)`,
g = 0 at temperature 0 and standard Gumbel noise above (Gumbel-max: Gumbel 1954; Maddison et al. 2014,
"A* Sampling"). The noise is a hash of (seed, conversation, turn, sample, output index, token id), so
whoever computes the same logits for the same place draws the same token, whatever was drafted.

Shapes: B sequences, R rows of logits per sequence, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from harness.config import configurable

_MASK32 = 0xFFFFFFFF


MIN_TEMPERATURE = 1e-3
"""The smallest above 0. Scores are logits over T in float32: below it they are so large that the noise of
order 1 is rounded away, and tokens of equal logits are no longer drawn alike."""


def _representable(temperature: float) -> float:
    if 0 < temperature < MIN_TEMPERATURE:
        raise ValueError(
            f"the smallest temperature above 0 is {MIN_TEMPERATURE:g}, as float32 cannot tell scores apart"
            " below it; type 0 for greedy decoding"
        )
    return temperature


Temperature = Annotated[float, Field(ge=0.0, le=100.0), AfterValidator(_representable)]
"""0, or a number from `MIN_TEMPERATURE` to 100."""


@configurable
class DecodingParams:
    """How tokens are drawn, how many samples there are, and when an output ends."""

    name: str
    """The name used in tables."""
    temperature: Temperature = 0.0
    """0 is greedy."""
    top_k: int = Field(default=0, ge=0)
    """The number of likeliest tokens that are kept; 0 switches the filter off."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """The probability mass that is kept; 1 switches the filter off."""
    filter_order: Literal["hf", "eagle"] = "hf"
    """`hf` applies top-k and then top-p, `eagle` top-p and then top-k (the order of the EAGLE code)."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """The cap on an output, in tokens."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """One independent sample per seed."""
    ignore_end_token: bool = False
    """Whether outputs are forced to full length, which every table marks."""

    @property
    def greedy(self) -> bool:
        """Whether no noise is added."""
        return self.temperature == 0.0

    def process(self, logits: Tensor) -> Tensor:
        """Float32 logits [..., V] after temperature and filters; filtered entries are -inf."""
        scores = logits.float()
        if self.greedy:
            return scores
        if self.temperature != 1.0:
            scores = scores / self.temperature
        steps = [self._keep_top_k, self._keep_top_p]
        for step in steps if self.filter_order == "hf" else reversed(steps):
            scores = step(scores)
        return scores

    def probs(self, logits: Tensor) -> Tensor:
        """The distribution [..., V] of the next token; a point mass at temperature 0."""
        scores = self.process(logits)
        if self.greedy:
            return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).float()
        return scores.softmax(-1)

    def _keep_top_k(self, scores: Tensor) -> Tensor:
        if not 0 < self.top_k < scores.shape[-1]:
            return scores
        least = scores.topk(self.top_k, dim=-1).values[..., -1:]
        return scores.masked_fill(scores < least, -torch.inf)

    def _keep_top_p(self, scores: Tensor) -> Tensor:
        if self.top_p >= 1.0:
            return scores
        ordered, index = scores.sort(dim=-1, descending=True)
        probs = ordered.softmax(-1)
        # A token stays while the mass before it is below top_p; the first always stays.
        drop = probs.cumsum(-1) - probs >= self.top_p
        return scores.masked_fill(torch.zeros_like(drop).scatter(-1, index, drop), -torch.inf)


def stream_key(seed: int, conversation: str, turn: int, sample: int) -> int:
    """The 64-bit key of one generation's random stream, which every arm and every rung uses."""
    text = f"{seed}\x00{conversation}\x00{turn}\x00{sample}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)


class TokenSampler:
    """Draws tokens for B sequences, each from its own random stream."""

    def __init__(self, params: DecodingParams, keys: Sequence[int], vocab_size: int, device: torch.device):
        """`keys`: one `stream_key` per sequence."""
        self.params = params
        self._keys = torch.tensor(list(keys), dtype=torch.int64, device=device)
        self._ids = _mix32(torch.arange(vocab_size, dtype=torch.int32, device=device))

    def keep(self, rows: Sequence[int]) -> None:
        """Continue with these sequences only, in this order."""
        self._keys = self._keys[torch.tensor(rows, device=self._keys.device)]

    def replace(self, row: int, key: int) -> None:
        """A new sequence, with this key, replaces the one in `row`."""
        self._keys = self._keys.clone()
        self._keys[row] = key

    def phase(self, seed: int) -> Tensor:
        """[B] float64 in [0, 1): a number that depends on the sequence and `seed` alone."""
        mixed = _mix64(self._keys ^ _mix64(torch.full_like(self._keys, seed)))
        return (mixed & ((1 << 52) - 1)).double() * 2.0**-52

    def generator(self, row: int, position: int) -> np.random.Generator:
        """A counter-based generator for one sequence and output position (p/q acceptance)."""
        key = int(self._keys[row]) & ((1 << 64) - 1)
        # The position fills the counter's upper half: the counter increases by one every four numbers, and
        # the streams of consecutive positions must not overlap.
        return np.random.Generator(np.random.Philox(key=key, counter=position << 128))

    def gumbel(self, index: Tensor) -> Tensor:
        """Standard Gumbel noise [B, R, V] for output positions `index` [B, R]."""
        place = _mix64(self._keys[:, None] ^ _mix64(index))
        low, high = _int32(place & _MASK32), _int32((place >> 32) & _MASK32)
        bits = _mix32(_mix32(self._ids ^ low[..., None]).add_(high[..., None]))
        # 31 bits to u in (0, 1]: a float is finest near 0, which is the tail that large noise comes from.
        uniform = bits.bitwise_and_(0x7FFFFFFF).to(torch.float32).mul_(2.0**-31).add_(2.0**-32)
        return uniform.neg_().log1p_().neg_().log_().neg_()

    def choose(self, logits: Tensor, index: Tensor, level: Tensor | None = None) -> Tensor:
        """Tokens [B, R] after rows of raw `logits` [B, R, V].

        index [B, L]: output positions; row r of sequence b stands at `index[b, level[b, r]]`
        (`level` [B, R]; None where L == R and they correspond). Rows of one position share noise.
        """
        scores = self.params.process(logits)
        if self.params.greedy:
            return scores.argmax(-1)
        noise = self.gumbel(index)
        if level is not None:
            noise = noise.gather(1, level[..., None].expand(-1, -1, noise.shape[-1]))
        return noise.add_(scores).argmax(-1)


def _int32(x: Tensor) -> Tensor:
    """Unsigned 32-bit values in int64 as int32 of the same bits."""
    return ((x ^ 0x80000000) - 0x80000000).to(torch.int32)


def _mix32(x: Tensor) -> Tensor:
    """A bijective 32-bit finaliser (constants of C. Wellons' lowbias32, public domain), int32 bits."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x.mul_(0x7FEB352D)
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF))
    x.mul_(0x846CA68B - (1 << 32))
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _mix64(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators")."""
    x = x + (0x9E3779B97F4A7C15 - (1 << 64))
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * (0x94D049BB133111EB - (1 << 64))
    return x ^ ((x >> 31) & ((1 << 33) - 1))
