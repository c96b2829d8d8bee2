"""Attention under a tree mask: the mask, and the kernel `grouped` (without repeated keys).

Shapes: B sequences, Hq query heads, H key/value heads, n new tokens, C readable cache slots, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from harness.config import ConfigError

GROUPED = "harness_grouped"
"""The kernel's name in transformers' table. It has no mask function there, so masks are passed unchanged."""

_NEW = 256
"""Every sliding window allows at least this many new tokens in a forward."""
_FEW = 64
"""Up to this many new tokens, compiled attention on CUDA is computed as matrix products."""


def register() -> None:
    """Make the kernel known to transformers; further calls do nothing new."""
    AttentionInterface.register(GROUPED, grouped)


def grouped(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention [B, n, Hq, D] of query [B, Hq, n, D] over key and value [B, H, C, D].

    attention_mask: bool [B, 1, n, C], True where a query may look; None means everything for one new
    token, and causal for a fresh prompt (n == C).
    """
    assert dropout == 0.0, "inference only"
    num_new = query.shape[2]
    groups = query.shape[1] // key.shape[1]
    # A plain bool even where the compiler has a symbol for the number of tokens.
    causal = True if attention_mask is None and num_new > 1 else False  # noqa: SIM210
    assert not causal or num_new == key.shape[2], "several tokens behind a prefix need a mask"
    if attention_mask is not None and query.device.type == "cuda":
        few = num_new <= _FEW and torch.compiler.is_compiling()
        attend = products if few else _folded
        output = attend(query, key, value, attention_mask, scaling)
    elif num_new == 1 and query.device.type == "cpu" and query.dtype != torch.float32:
        # A CPU's kernel reads 16 bits of one query six times as slowly as of the few that share keys.
        output = _folded(query, key, value, attention_mask, scaling)
    else:
        output = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            is_causal=causal,
            scale=scaling,
            enable_gqa=groups > 1,
        )
    return output.transpose(1, 2), None


def products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Attention [B, Hq, n, D] as products and a softmax, which the compiler fuses.

    For few tokens: CUDA's masked kernels walk all slots with one thread block per head, and take three times
    as long.
    """
    rows, query_heads, num_new, head_dim = query.shape
    num_heads, num_slots = key.shape[1:3]
    groups = query_heads // num_heads
    scaled = query * (head_dim**-0.5 if scaling is None else scaling)
    scores = scaled.reshape(rows, num_heads, groups * num_new, head_dim) @ key.transpose(-1, -2)
    scores = scores.view(rows, num_heads, groups, num_new, num_slots).float()
    weights = scores.masked_fill(~mask[:, :, None], -torch.inf).softmax(-1).to(value.dtype)
    output = weights.view(rows, num_heads, groups * num_new, num_slots) @ value
    return output.reshape(rows, query_heads, num_new, head_dim)


def _folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attention with the groups folded into the query axis, as CUDA's grouped kernels take no mask."""
    rows, query_heads, num_new, head_dim = query.shape
    groups = query_heads // key.shape[1]
    folded = query.reshape(rows, key.shape[1], groups * num_new, head_dim)
    mask = None if mask is None else mask.repeat(1, 1, groups, 1)
    output = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scaling)
    return output.reshape(rows, query_heads, num_new, head_dim)


def tree_mask(lengths: Sequence[int] | Tensor, tree: Tensor, num_slots: int | None = None) -> Tensor:
    """The cache slots that n new tokens may look at: bool [B, 1, n, C].

    C is num_slots, or the longest length + E. lengths: the committed tokens of each sequence, which all are
    seen; a tensor [B] where the host does not know them (num_slots is needed then).
    tree [B, n, E] bool: which of the E tokens right behind the committed ones (the new ones last) each new
    token sees.
    """
    num_rows, num_new, num_behind = tree.shape
    device = tree.device
    if isinstance(lengths, Tensor):
        assert num_slots is not None, "the host does not know the longest length"
        base = lengths[:, None, None]
    else:
        longest = max(lengths)
        end = longest + num_behind
        num_slots = num_slots or end
        base = torch.tensor(list(lengths)).to(device, non_blocking=True)[:, None, None]
    mask = torch.ones(num_rows, 1, num_new, num_slots, dtype=torch.bool, device=device)
    if not isinstance(lengths, Tensor) and min(lengths) == longest:
        mask[:, 0, :, longest:end] = tree
        mask[:, 0, :, end:] = False
        return mask
    mask[:, 0] = torch.arange(num_slots, device=device) < base
    place = (base + torch.arange(num_behind, device=device)).expand(tree.shape)
    mask[:, 0].scatter_(2, place, tree)
    return mask


Masks = Tensor | dict[str, Tensor]
"""One mask of a forward, or one for each kind of layer, by transformers' names of the kinds."""


@dataclass(frozen=True)
class Window:
    """The sliding window of some layers, or of all."""

    size: int
    """A token sees those that are fewer positions behind it."""
    layers: frozenset[int] | None
    """The layers that have it; None: every layer, and there is one mask for all. Otherwise each kind of layer
    has a mask of its own."""

    @classmethod
    def of(cls, config: Any) -> Window | None:
        """The window of a model with this transformers configuration; None where every layer sees all."""
        size, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
        if kinds:
            layers = frozenset(number for number, kind in enumerate(kinds) if kind == "sliding_attention")
            return cls(int(size or 0), layers) if layers else None
        return cls(int(size), None) if size and getattr(config, "use_sliding_window", True) else None

    def holds_in(self, layer: int) -> bool:
        """Whether this layer has the window."""
        return self.layers is None or layer in self.layers

    @property
    def most_new(self) -> int:
        """The largest number of new tokens in one forward where more than `num_slots` slots are read."""
        return max(self.size, _NEW)

    @property
    def num_slots(self) -> int:
        """The most cache slots of a layer with the window.

        In a longer text, token i takes slot i % num_slots. New tokens then overwrite what no window reaches
        any more, even if all of them are rolled back.
        """
        return self.size + self.most_new

    def masks(self, mask: Tensor, positions: Tensor, slots: Tensor) -> Masks:
        """What a mask [B, 1, n, C] leaves, for new tokens at positions [B, n] over slots [B, C] of the cache.

        slots: the position of the token in each slot.
        """
        near = positions[:, None, :, None] - slots[:, None, None, :] < self.size
        sliding = mask & near
        return sliding if self.layers is None else {"full_attention": mask, "sliding_attention": sliding}

    def in_turns(self, mask: Tensor, base: Tensor) -> Tensor:
        """A mask [B, 1, n, C] of n new tokens behind `base` [B] others, over the slots of a layer with the
        window, whose tokens take turns in them if they are more than `num_slots`.

        Raises:
            ConfigError: there are more new tokens than can be rolled back.
        """
        count, num_slots = mask.shape[2], self.num_slots
        if mask.shape[-1] <= num_slots:
            return mask
        if count > self.most_new:
            raise ConfigError(
                f"{count} new tokens in one forward: the target's sliding window of {self.size} allows"
                f" {self.most_new} at most; type a smaller draft"
            )
        last = base[:, None] + count - 1
        # The latest token that took each slot; before the first turn, none.
        token = last - (last - torch.arange(num_slots, device=mask.device)) % num_slots
        index = token.clamp(min=0)[:, None, None].expand(-1, 1, count, -1)
        return mask.gather(3, index) & (token >= 0)[:, None, None]


@dataclass(frozen=True)
class MaskForm:
    """How a model takes its masks: by the window of its layers, and as its attention kernel reads them."""

    window: Window | None
    kernel: str
    dtype: torch.dtype
    """The type of masks that a kernel adds."""

    def between(self, positions: Tensor, mask: Tensor) -> Masks:
        """A mask [B, 1, n, n] between tokens at positions [B, n], for a kernel that takes bool masks."""
        return mask if self.window is None else self.window.masks(mask, positions, positions)

    def explicit(self, mask: Tensor | None, start: int, count: int, device: torch.device) -> Tensor | None:
        """The mask of `count` new tokens behind `start` others; None where the kernel needs none."""
        if mask is not None or self.window is None:
            return mask
        # The kernel's own masks, of what is left out here, know no window.
        causal = torch.ones(count, start + count, dtype=torch.bool, device=device).tril(start)
        return causal[None, None]

    def over_slots(self, mask: Tensor, positions: Tensor, base: Tensor | Sequence[int]) -> Masks:
        """A mask [B, 1, n, C] of new tokens at positions [B, n] behind `base` [B] committed ones."""
        if self.window is None:
            return self.added(mask)
        if not isinstance(base, Tensor):
            base = torch.tensor(list(base)).to(mask.device, non_blocking=True)
        slots = torch.arange(mask.shape[-1], device=mask.device).expand(len(positions), -1)
        new = base[:, None] + torch.arange(positions.shape[1], device=mask.device)
        masks = self.window.masks(mask, positions, slots.scatter(1, new, positions))
        if isinstance(masks, Tensor):
            return self.added(self.window.in_turns(masks, base))
        masks["sliding_attention"] = self.window.in_turns(masks["sliding_attention"], base)
        return {kind: self.added(one) for kind, one in masks.items()}

    def added(self, mask: Tensor) -> Tensor:
        """The bool mask in the form that the kernel takes: transformers' eager kernels add it to scores."""
        if self.kernel != "eager":
            return mask
        least = torch.finfo(self.dtype).min
        return torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill(~mask, least)
