"""BlockDrafter: the rounds of a drafter that runs a block behind a cache of context rows.

Shapes: B sequences, k drafted slots, F width of the target's features, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.drafter import Drafter, HiddenTap, Outcome, TargetView
from methods.shared.block.chains import Noise
from methods.shared.block.check import refuse_wrong_reading
from methods.shared.block.checkpoint import LoadedBlock, RandomSizes, load_block, random_block, refuse_misfit
from methods.shared.block.config import Readings
from methods.shared.block.networks.network import BlockNetwork
from methods.shared.block.shape import Kind
from methods.shared.block.steps import BlockSteps
from methods.shared.head_files import prompts_beside


@configurable
class BlockDrafter(Drafter):
    """Base of drafters with a `BlockNetwork`; a subclass makes a draft of the states of a block.

    Features enter the cache once, in `observe`. A block is run behind them and leaves nothing.
    """

    kind: Kind
    """`dflash`, `dflash2` or `dspark`: the parts that the head must have."""
    head: str | None = None
    """A folder, a hub id, or `random`: weights from `seed`, which draft badly and serve to measure time
    alone."""
    revision: str | None = None
    dtype: Literal["target", "float32", "bfloat16", "float16"] = "target"
    """The head's dtype; `target` takes the target's."""
    draft_length: int | None = Field(default=None, ge=1)
    """Slots that draft; None: as many as the head's block has. Fewer than it was trained for are legal, more
    are not."""
    sample_from_anchor: bool | None = None
    """Whether the anchor's slot drafts the first token; None: as whoever made the checkpoint trains."""
    tap_point: Literal["auto", "output", "input"] = "auto"
    """Whether the checkpoint's numbers name outputs of blocks or their inputs; `auto`: `input` in the layout
    of speculators, else `output`."""
    causal: bool | None = None
    """Whether a slot sees only the slots before it, in every layer; None: as the checkpoint says."""
    mask_token_id: int | None = Field(default=None, ge=0)
    """The mask token; None: the checkpoint's, or the last id for a random head."""
    num_layers: int = Field(default=5, ge=1)
    """Layers of a random head."""
    block_size: int = Field(default=8, ge=2)
    """Inputs of a random head's block."""
    intermediate_size: int | None = Field(default=None, ge=1)
    """Width of the MLPs of a random head; None takes the target's."""
    tap_layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    """The target's blocks whose outputs a random head reads; None: as many as it has layers, spread over the
    target."""
    markov_rank: int = Field(default=256, ge=1)
    """Rank of a random DSpark head's correction."""
    draft_vocab_size: int | None = Field(default=None, ge=1)
    """Tokens that a random head can draft, in training the most frequent of the answers; None: all of the
    target's."""
    seed: int = Field(default=0, ge=0)
    """Decides random weights and the noise that tokens are drawn with."""

    @override
    def bind(self, target: TargetView) -> None:
        """Load the head.

        Raises:
            ConfigError: there is no such head, or it does not fit the target or the settings.
        """
        super().bind(target)
        self._loaded = self._load(target)
        shape = self._loaded.network.shape
        refuse_misfit(shape, self.kind, target, f"head={self.head}")
        most = shape.block_size - shape.first_slot
        if self.draft_length is not None and self.draft_length > most:
            raise ConfigError(
                f"draft_length={self.draft_length}: the head {self.head} drafts at most {most} tokens, with"
                f" blocks of {shape.block_size}"
            )
        self._noise = Noise(self.seed)
        self._loaded.network.take_lm_head(target)
        self.use(self._loaded.network)

    def use(self, network: BlockNetwork) -> None:
        """Draft with this network from now on."""
        self.network = network
        self._target.prepare(network)
        shape = network.shape
        self.length = self.draft_length or shape.block_size - shape.first_slot
        self._steps = BlockSteps(self._target, network, self.length + shape.first_slot)

    @property
    @override
    def taps(self) -> tuple[HiddenTap, ...]:
        return self.network.shape.taps

    @property
    @override
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.network.parameters(), *self.network.buffers()))

    @override
    def card(self) -> dict[str, Any]:
        taps = [[tap.layer, tap.point] for tap in self.taps]
        return {**self._loaded.card, "taps": taps, "draft_length": self.length}

    @property
    @override
    def training_prompts(self) -> Sequence[Path]:
        return prompts_beside(self._loaded.card)

    @override
    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Compare this reading of the slots and of the tapped blocks with the others, by how often the first
        token is right."""
        if self.head != "random":
            refuse_wrong_reading(self.network, self._target, prompts, f"the head {self.head}")

    @override
    def rehearse(self, num_rows: int, context: int) -> Callable[[int], None]:
        """Time the head over blocks of any width."""
        self.reset(num_rows)
        self._take(torch.ones(num_rows, context, self.network.shape.feature_size), [context] * num_rows)

        @torch.no_grad()
        def call(num_tokens: int) -> None:
            self._steps.run(self._block([0] * num_rows, num_tokens))

        return call

    @override
    def warm_up(self, num_rows: int) -> None:
        self.reset(num_rows)
        self._take(torch.ones(num_rows, 1, self.network.shape.feature_size), [1] * num_rows)
        self.propose([0] * num_rows)

    @override
    def reset(self, num_rows: int) -> None:
        self._steps.cache.clear(num_rows)
        self._noise.reset(num_rows)
        self._pending = [0] * num_rows

    @override
    def observe(self, outcome: Outcome) -> None:
        """Take in the features of the committed tokens; the pending one has none."""
        counts = [len(committed) for committed in outcome.committed]
        features = torch.cat(outcome.taps, dim=-1)
        if outcome.rows is None:
            self._take(features, counts)
            self._pending = list(outcome.pending)
            return
        for place, row in enumerate(outcome.rows):
            self._steps.cache.lengths[row] = 0
            self._take(features[place : place + 1, : counts[place]], [counts[place]], row)
            self._pending[row] = outcome.pending[place]
            self._noise.renew(row)

    @override
    def keep(self, rows: Sequence[int]) -> None:
        self._steps.cache.keep(list(rows))
        self._noise.keep(rows)
        self._pending = [self._pending[row] for row in rows]

    @torch.no_grad()
    def _take(self, features: Tensor, counts: Sequence[int], row: int | None = None) -> None:
        self._steps.take(features.to(self._target.device, self.network.fc.weight.dtype), counts, row)

    def _run(self) -> Tensor:
        """The states [B, k, H] of the slots that draft behind the pending tokens."""
        first = self.network.shape.first_slot
        self.ids = self._block(self._pending, self.length + first)
        self.states = self._steps.run(self.ids)
        return self.states[:, first:]

    def _block(self, anchors: Sequence[int], width: int) -> Tensor:
        """The inputs [B, width] of a block: the anchor, then mask tokens."""
        rows = [[anchor] + [self.network.shape.mask_token_id] * (width - 1) for anchor in anchors]
        return torch.tensor(rows).to(self._target.device, non_blocking=True)

    def _load(self, target: TargetView) -> LoadedBlock:
        dtype: torch.dtype = target.dtype if self.dtype == "target" else getattr(torch, self.dtype)
        if self.head is None:
            raise ConfigError(
                f"head: none is known for this target; give a {self.kind} head with methods.NAME.head=FOLDER"
                " (or a hub id ORG/NAME), or `random` to measure the shape alone"
            )
        if self.head == "random":
            return random_block(
                self.kind,
                target=target,
                sizes=RandomSizes(
                    num_layers=self.num_layers,
                    block_size=self.block_size,
                    intermediate_size=self.intermediate_size,
                    tap_layers=self.tap_layers,
                    draft_vocab_size=self.draft_vocab_size,
                    markov_rank=self.markov_rank,
                ),
                mask_token_id=self.mask_token_id,
                dtype=dtype,
                seed=self.seed,
            )
        readings = Readings(
            sample_from_anchor=self.sample_from_anchor,
            tap_point=None if self.tap_point == "auto" else self.tap_point,
            causal=self.causal,
            mask_token_id=self.mask_token_id,
        )
        return load_block(
            self.head, revision=self.revision, readings=readings, dtype=dtype, device=target.device
        )
