"""OneCallDrafter: what drafters with a `OneCallNetwork` have in common, from their head to their training."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.drafter import HiddenTap, TargetView
from harness.drafting.trainable import TrainableDrafter, TrainingRow
from methods.shared.draft_vocabulary import DraftVocabulary, map_of_most_frequent
from methods.shared.eagle.checkpoint import TargetFacts
from methods.shared.eagle.pair_drafter import PairDrafter
from methods.shared.eagle.training import drawn, feature_scale
from methods.shared.head_files import prompts_beside
from methods.shared.one_call.checkpoint import Layout, Loaded, Sizes, sizes_like
from methods.shared.one_call.network import NetworkShape, OneCallNetwork, target_layers
from methods.shared.one_call.packed import Goals
from methods.shared.one_call.steps import OneCallSteps

_INIT_STD = 0.02


@configurable
class OneCallDrafter(PairDrafter, TrainableDrafter):
    """Base of drafters whose network guesses several tokens in one call."""

    layout: ClassVar[Layout[Any, Any]]
    """How its heads lie in files."""
    head: str | None = None
    """A folder, a hub id, a head that ships (a folder of `methods/heads`), or `random`: weights from
    `seed`."""
    revision: str | None = None
    dtype: Literal["target", "float32", "bfloat16", "float16"] = "target"
    """The network's dtype; `target` takes the target's."""
    draft_vocab_size: int | None = Field(default=None, ge=1)
    """Draft vocabulary of a random network; None is the target's whole vocabulary."""
    intermediate_size: int | None = Field(default=None, ge=1)
    """The size of a random network, as are the following two; None takes the target's."""
    num_heads: int | None = Field(default=None, ge=1)
    num_kv_heads: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)

    @abstractmethod
    def new_shape(self, sizes: dict[str, Any]) -> NetworkShape:
        """The shape of a random network. sizes: the fields that all networks have."""

    @abstractmethod
    def new_steps(self, network: Any) -> OneCallSteps:
        """The network's steps behind a new cache."""

    @property
    @abstractmethod
    def trained_with(self) -> Any:
        """The recipe, a dataclass, which the card of a trained head tells."""

    @override
    def bind(self, target: TargetView) -> None:
        """Load the network.

        Raises:
            ConfigError: there is no such network, or it does not fit the target or the tree.
        """
        super().bind(target)
        self._loaded = self._load(target)
        network = self._loaded.network
        num_tokens = network.shape.draft_vocab_size
        if self.tree.num_children > num_tokens:
            raise ConfigError(
                f"tree: {self.tree.num_children} children of a node, but the head's"
                f" vocabulary has {num_tokens}"
            )
        # The output of a block is the input of the next one, which EAGLE-3's heads tap and keep on disk.
        last = target.config.num_hidden_layers - 1
        layers = target_layers(target.config.num_hidden_layers)
        taps = (HiddenTap(layer + 1, "input") if layer < last else HiddenTap(layer) for layer in layers)
        self.draft_with(network, tuple(taps))

    @override
    def card(self) -> dict[str, Any]:
        return {**self._loaded.card, "taps": [[tap.layer, tap.point] for tap in self._taps]}

    @property
    @override
    def training_prompts(self) -> Sequence[Path]:
        return prompts_beside(self._loaded.card)

    @property
    @override
    def feature_shape(self) -> tuple[int, torch.dtype]:
        layer = self.network.feature_layer
        return layer.in_features, layer.weight.dtype

    def draft_with(self, network: OneCallNetwork, taps: tuple[HiddenTap, ...]) -> None:
        """Draft with this network from now on; it reads the target's states at `taps`."""
        self.network = network
        self._target.prepare(network)
        self.one_call_steps = self.new_steps(network)
        self.use(network, taps, self.one_call_steps)

    def _dtype(self, target: TargetView) -> torch.dtype:
        dtype: torch.dtype = target.dtype if self.dtype == "target" else getattr(torch, self.dtype)
        return dtype

    def _load(self, target: TargetView) -> Loaded[Any]:
        config, dtype = target.config, self._dtype(target)
        facts = TargetFacts(
            hidden_size=config.hidden_size, vocab_size=target.vocab_size, num_layers=config.num_hidden_layers
        )
        if self.head is None:
            raise ConfigError(
                "head: none is known for this target; give one with methods.NAME.head=FOLDER,"
                " or `random` to measure the shape alone"
            )
        if self.head != "random":
            return self.layout.load(self.head, self.revision, facts, dtype, target.device)
        sizes = Sizes(self.intermediate_size, self.num_heads, self.num_kv_heads)
        shape = self.new_shape(sizes_like(facts, config, sizes, self.draft_vocab_size))
        return self.layout.random(shape, dtype, target.device, self.seed)

    @override
    def begin_training(self, counts: Tensor, rows: Sequence[TrainingRow], seed: int) -> torch.nn.Module:
        """Start from fresh weights if the head is `random`, else from the head's weights."""
        self._scale = feature_scale(torch.cat([torch.cat(row.taps, dim=-1) for row in rows]))
        device = self._target.device
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            student = self.layout.new(self._loaded.shape).to(device)
        with torch.no_grad():
            if self.head == "random":
                self.initialise(student, counts, seed)
            else:
                student.load_state_dict(self.network.state_dict())
                student.feature_layer.weight.mul_(self._scale)
        self.student = student.train().requires_grad_(True)
        self.vocabulary = DraftVocabulary(student, self._target)
        return self.student  # type: ignore[no-any-return]

    def initialise(self, student: Any, counts: Tensor, seed: int) -> None:
        """Fresh weights; the most frequent tokens of `counts` [vocabulary of the target] are drafted."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for parameter in student.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=_INIT_STD)
        shape: NetworkShape = student.shape
        if shape.draft_vocab_size < shape.vocab_size:
            counts = counts.to(self._target.device)
            student.d2t.copy_(map_of_most_frequent(counts, shape.draft_vocab_size))

    def read(self, row: TrainingRow) -> tuple[Tensor, Tensor]:
        """Scaled features [L, F] and embeddings [L, H] of next tokens: what the student reads of a row."""
        features = torch.cat(row.taps, dim=-1).float() / self._scale
        embed = self.student.embedding or self._target.embed
        return features, embed(row.ids.roll(-1)).float()

    def goals(self, row: TrainingRow, begins: Tensor) -> Goals:
        """What the guesses of a packed row are compared with; see `Goals.of`."""
        return Goals.of(row, begins, self.vocabulary)

    def chosen(self, begins: Tensor, share: float) -> Tensor:
        """Indices of the rows [L] that draft, of which each is drawn with probability `share`."""
        rows = begins.nonzero()[:, 0]
        return rows[drawn(len(rows), share, rows.device)]

    @torch.no_grad()
    def _folded(self) -> Any:
        """A copy of the student that reads features as they are."""
        network = self.layout.new(self._loaded.shape)
        network.load_state_dict(self.student.state_dict())
        network.feature_layer.weight.div_(self._scale.to(network.feature_layer.weight.device))
        return network

    @override
    def deploy(self) -> None:
        self.draft_with(self._folded().place(self._target.device, self._dtype(self._target)), self._taps)

    @override
    def export(self, folder: Path, card: dict[str, Any]) -> None:
        """Write the network in float16, as releases lay heads out."""
        network = self._folded().place(torch.device("cpu"), torch.float16)
        training = {**card.get("training", {}), "recipe": dataclasses.asdict(self.trained_with)}
        self.save(network, folder, {**card, "training": training})

    def save(self, network: Any, folder: Path, card: dict[str, Any]) -> None:
        """Write a network and its card."""
        self.layout.save(network, network.shape, folder, card)
