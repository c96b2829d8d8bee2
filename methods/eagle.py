"""EAGLE-1, EAGLE-2 and EAGLE-3: a small head that guesses the target's next features, grown into a tree.

EAGLE-1 (Li et al. 2024, arXiv 2401.15077): one decoder layer predicts the target's next final feature from
its last one and the token drawn after it; a static tree. EAGLE-2 (arXiv 2406.16858): the same weights, a tree
that follows the head's own confidence. EAGLE-3 (arXiv 2503.01840): features of three blocks, trained on its
own guesses, a draft vocabulary.
A round feeds the pairs (true feature, next token) that the last one brought to the head's cache; the tree is
then grown on rows behind them that vanish, so no key of a guessed feature survives.
Where the code departs from the official one: scores in float32 with ties to the earlier candidate, batches,
and static trees of likeliest (not sampled) children.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from pydantic import Field
from torch import Tensor

from harness.config import ConfigError, configurable
from harness.drafting.draft import Draft
from harness.drafting.drafter import HiddenTap, Outcome, TargetView
from harness.drafting.trainable import TrainableDrafter, TrainingRow
from harness.drafting.trees import TreePolicy
from harness.runtime.cache import SlotCache
from methods.shared.eagle.checkpoint import LoadedHead, TargetFacts, load_head, random_head, save_head
from methods.shared.eagle.growth import Growth
from methods.shared.eagle.head import Architecture, Head
from methods.shared.eagle.steps import HeadSteps
from methods.shared.eagle.training import (
    DraftVocabulary,
    EagleRecipe,
    feature_scale,
    folded,
    fresh_head,
    regression_step,
    unfolded,
    unrolled_steps,
)

_CARDS = Path(__file__).parent / "heads" / "cards.yaml"
_MARGIN = 0.1
"""The other reading of the tapped layers may be right that much more often: noise of few rows."""


@configurable
class Eagle(TrainableDrafter):
    """Drafts trees with a trained head.

    head: a folder, a hub id, one that ships (a folder of `methods/heads`), or `random` (weights from `seed`:
    benchmarks of shape, drafts nothing good).
    tree: see `harness.drafting.trees`. dtype: of the head; `target` is the target's.
    aux_layers: the tapped blocks of EAGLE-3; None takes the checkpoint's, else the official 2, L//2 and L-3.
    aux_convention: whether these name the blocks whose `input` or whose `output` is tapped. `auto`: `output`
    if the checkpoint's list begins with 1, as SpecForge writes it, else `input`.
    norm_output, norm_before_residual: see `HeadShape`; None is what the checkpoint says.
    draft_vocab_size: of a random EAGLE-3 head; None is the target's whole vocabulary. recipe: its training.
    """

    architecture: Architecture
    tree: TreePolicy
    head: str | None = None
    revision: str | None = None
    dtype: Literal["target", "float32", "bfloat16", "float16"] = "target"
    aux_layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    aux_convention: Literal["auto", "input", "output"] = "auto"
    norm_output: bool | None = None
    norm_before_residual: bool | None = None
    draft_vocab_size: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    recipe: EagleRecipe = Field(default_factory=EagleRecipe)

    @property
    def taps(self) -> tuple[HiddenTap, ...]:
        """See `Drafter`."""
        return self._taps

    def bind(self, target: TargetView) -> None:
        """See `Drafter`; reads the head.

        Raises:
            ConfigError: there is no such head, or it does not fit the target or the tree.
        """
        super().bind(target)
        self._loaded = self._load(target)
        self.network: Head = self._loaded.head
        target.prepare(self.network)
        if self.architecture == "eagle":
            self._taps: tuple[HiddenTap, ...] = (HiddenTap(-1, "normed"),)
        else:
            self._taps = self._aux_taps(target.config.num_hidden_layers)
            wanted = self.network.shape.num_taps
            if len(self._taps) != wanted:
                raise ConfigError(
                    f"aux_layers: {len(self._taps)} layers are named, but the fc of the head"
                    f" {self.head} reads {wanted}"
                )
        width = self.network.shape.draft_vocab_size
        if self.tree.num_children > width:
            raise ConfigError(
                f"tree: {self.tree.num_children} children of a node, but the head's vocabulary has {width}"
            )
        self._settle()

    def _settle(self) -> None:
        """Around the head as it is now."""
        self._steps = HeadSteps(self._target, self.network)
        self._cache = self._steps.cache
        self._round = self._target.captured(self._grow) if self.tree.device_only else None

    @property
    def num_drafted(self) -> int | None:
        """See `Drafter`."""
        return self.tree.num_nodes

    @property
    def num_bytes(self) -> int:
        """See `Drafter`."""
        return sum(tensor.nbytes for tensor in (*self.network.parameters(), *self.network.buffers()))

    def card(self) -> dict[str, Any]:
        """See `Drafter`; of a head that is known, also what `methods/heads/cards.yaml` says of its makers."""
        taps = [[tap.layer, tap.point] for tap in self._taps]
        known = OmegaConf.to_container(OmegaConf.load(_CARDS))
        makers = known.get(str(self.head)) if isinstance(known, dict) else None
        return {**self._loaded.card, "taps": taps, **({"known": makers} if makers else {})}

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """See `Drafter`: compares both readings of the tapped layers by how often the head is right."""
        if self.architecture == "eagle" or self.head == "random":
            return
        flipped = {"input": "output", "output": "input"}
        others = tuple(HiddenTap(tap.layer, flipped[tap.point]) for tap in self._taps)
        num_right = num_right_otherwise = num_rows = 0
        for prompt in prompts:
            if len(prompt) < 3:
                continue
            ids = torch.tensor([list(prompt)], device=self._target.device)
            logits, states = self._target.trace(ids, (*self._taps, *others))
            best = logits[:, 1:].argmax(-1)
            num_right += int((self._guess(ids, states[: len(others)]) == best).sum())
            num_right_otherwise += int((self._guess(ids, states[len(others) :]) == best).sum())
            num_rows += best.shape[1]
        if num_right_otherwise - num_right > _MARGIN * num_rows:
            given, layers = self._taps[0].point, [tap.layer for tap in self._taps]
            raise ConfigError(
                f"aux_convention: fed the {given}s of blocks {layers}, the head {self.head} guesses"
                f" {num_right / num_rows:.0%} of the target's tokens, but fed their {flipped[given]}s"
                f" {num_right_otherwise / num_rows:.0%}; type aux_convention={flipped[given]} for this method"
            )

    def rehearse(self, num_rows: int, context: int) -> Callable[[int], None]:
        """See `Drafter`: the head over siblings, from their embedding to their best children."""
        self.reset(num_rows)
        network, device = self.network, self._target.device
        width = network.shape.feature_size
        growth = Growth(self._steps)
        features = torch.ones(num_rows, context, width, dtype=network.fc.weight.dtype, device=device)
        growth.feed(
            features, torch.ones(num_rows, context, dtype=torch.int64, device=device), [context] * num_rows
        )

        def call(num_tokens: int) -> None:
            tokens = torch.ones(num_rows, num_tokens, dtype=torch.int64, device=device)
            growth.rewind()
            growth.expand(tokens, torch.full_like(tokens, -1), self.tree.num_children)

        return call

    @torch.no_grad()
    def warm_up(self, num_rows: int) -> None:
        """See `Drafter`: a tree behind every number of pairs that a round may bring."""
        self.reset(num_rows)
        size, dtype = self.network.shape.feature_size, self.network.fc.weight.dtype
        # Nothing is compiled for an empty cache, so the first one is to fill it.
        for count in (1, *self._steps.sizes):
            self._counts = [count] * num_rows
            self._tokens = torch.zeros(num_rows, count, dtype=torch.int64, device=self._target.device)
            self._features = torch.ones(num_rows, count, size, dtype=dtype, device=self._target.device)
            self.propose([0] * num_rows)

    def reset(self, num_rows: int) -> None:
        """See `Drafter`."""
        self._cache.clear(num_rows)

    def observe(self, outcome: Outcome) -> None:
        """See `Drafter`; the pairs of a true feature and the token after it wait for the next draft."""
        counts = [len(committed) for committed in outcome.committed]
        longest = max(counts)
        following = [
            [*committed[1:], pending] + [0] * (longest - len(committed))
            for committed, pending in zip(outcome.committed, outcome.pending, strict=True)
        ]
        device, dtype = self._target.device, self.network.fc.weight.dtype
        tokens = torch.tensor(following).to(device, non_blocking=True)
        features = torch.cat([states.to(device, dtype) for states in outcome.taps], dim=-1)
        if outcome.rows is None:
            self._tokens, self._features, self._counts = tokens, features, counts
            return
        for place, row in enumerate(outcome.rows):
            self._begin(row, features[place, : counts[place]], tokens[place, : counts[place]])

    def _begin(self, row: int, features: Tensor, tokens: Tensor) -> None:
        """A new sequence in this row: its pairs [P, F] and [P].

        All but the last are fed at once: waiting for the next draft, they would widen every other row.
        """
        self._cache.lengths[row] = 0
        if len(tokens) > 1:
            growth = Growth(self._steps, row)
            growth.feed(features[None, :-1], tokens[None, :-1], [len(tokens) - 1])
        self._features[row, 0], self._tokens[row, 0], self._counts[row] = features[-1], tokens[-1], 1

    def propose(self, room: Sequence[int]) -> Draft:
        """See `Drafter`."""
        # The room is not looked at: to the last round the tree is the one that the official code would grow.
        self.growth = Growth(self._steps)
        features, tokens = self.growth.padded(self._features, self._tokens)
        num_rows, num_pairs = tokens.shape
        level, num_more = self.tree.num_children, self.tree.num_expanded
        if self._round is None or not self._steps.captures(num_rows, num_pairs, level, num_more):
            self.growth.feed(features, tokens, self._counts)
            return self.tree.grow(self.growth)
        counts = torch.tensor(self._counts).to(tokens.device, non_blocking=True)
        draft: Draft = self._round(
            *(features, tokens, counts, self._cache.base(tokens.device)), where=self._cache.where
        )
        self._cache.advance(self._counts)
        # Rounds are looked at again when they are judged.
        return draft.copied()

    def _grow(self, features: Tensor, tokens: Tensor, counts: Tensor, lengths: Tensor) -> Draft:
        """What is captured of a round."""
        with self._cache.lengths_on_device(lengths):
            growth = Growth(self._steps)
            growth.feed(features, tokens, counts)
            return self.tree.grow(growth)

    def keep(self, rows: Sequence[int]) -> None:
        """See `Drafter`."""
        self._cache.keep(list(rows))
        self._tokens, self._features = self._tokens[list(rows)], self._features[list(rows)]
        self._counts = [self._counts[row] for row in rows]

    def begin_training(self, counts: Tensor, rows: Sequence[TrainingRow], seed: int) -> torch.nn.Module:
        """See `TrainableDrafter`; a `random` head is begun anew, any other is trained on."""
        shape = self.network.shape
        self._scale: Tensor | None = None
        if shape.architecture == "eagle3" and not (shape.fc_norm or shape.norm_before_fc):
            self._scale = feature_scale(torch.cat([torch.cat(row.taps, dim=-1) for row in rows]))
        if self.head == "random":
            self._student = fresh_head(shape, counts, self._target, seed)
        else:
            self._student = unfolded(self.network, self._scale)
        self._student.train().requires_grad_(True)
        if self._student.embed_tokens is not None:
            self._student.embed_tokens.requires_grad_(False)
        self._vocabulary = DraftVocabulary(self._student, self._target)
        return self._student

    def loss(self, row: TrainingRow) -> tuple[Tensor, dict[str, float]]:
        """See `TrainableDrafter`."""
        features = torch.cat(row.taps, dim=-1).float()
        if self.architecture == "eagle":
            steps = [regression_step(self._student, features, row, self._target, self.recipe)]
        else:
            features = features if self._scale is None else features / self._scale
            steps = unrolled_steps(self._student, features, row, self._target, self.recipe, self._vocabulary)
        total = torch.stack(
            [self.recipe.decay**number * step.loss for number, step in enumerate(steps)]
        ).sum()
        numbers: dict[str, float] = {}
        for number, step in enumerate(steps):
            numbers[f"loss_{number}"] = float(step.loss.detach())
            numbers[f"accuracy_{number}"] = float(step.num_right) / max(step.num_rows, 1)
        return total, numbers

    def deploy(self) -> None:
        """See `TrainableDrafter`."""
        dtype = self._target.dtype if self.dtype == "target" else getattr(torch, self.dtype)
        self.network = folded(self._student, self._scale).place(self._target.device, dtype)
        self._target.prepare(self.network)
        self._settle()

    def export(self, folder: Path, card: dict[str, Any]) -> None:
        """See `TrainableDrafter`; float16, as the official heads."""
        head = folded(self._student, self._scale).place(torch.device("cpu"), torch.float16)
        aux = None if self.architecture == "eagle" else [tap.layer for tap in self._taps]
        training = {**card.get("training", {}), "recipe": dataclasses.asdict(self.recipe)}
        save_head(head, folder, aux_layers=aux, card={**card, "training": training})

    def _load(self, target: TargetView) -> LoadedHead:
        config = target.config
        dtype = target.dtype if self.dtype == "target" else getattr(torch, self.dtype)
        facts = TargetFacts(
            hidden_size=config.hidden_size, vocab_size=target.vocab_size, num_layers=config.num_hidden_layers
        )
        if self.head is None:
            raise ConfigError(
                "head: none is known for this target; give one of the architecture"
                f" {self.architecture!r} with methods.NAME.head=FOLDER (or a hub id ORG/NAME),"
                " or `random` to measure the shape alone"
            )
        if self.head == "random":
            return random_head(
                architecture=self.architecture,
                target=facts,
                like=config,
                draft_vocab_size=self.draft_vocab_size if self.architecture == "eagle3" else None,
                dtype=dtype,
                device=target.device,
                seed=self.seed,
            )
        return load_head(
            self.head,
            revision=self.revision,
            architecture=self.architecture,
            target=facts,
            dtype=dtype,
            device=target.device,
            norm_output=self.norm_output,
            norm_before_residual=self.norm_before_residual,
        )

    def _aux_taps(self, num_layers: int) -> tuple[HiddenTap, ...]:
        """The official code records the residual stream entering blocks 2, L//2 and L-3."""
        official = (min(2, num_layers - 1), num_layers // 2, max(num_layers - 3, 0))
        written = self._loaded.aux_layers
        layers = self.aux_layers or written or official
        point = self.aux_convention
        if point == "auto":
            point = "output" if self.aux_layers is None and written and written[0] == 1 else "input"
        return tuple(HiddenTap(layer, point) for layer in layers)

    def _guess(self, ids: Tensor, states: Sequence[Tensor]) -> Tensor:
        """The head's likeliest tokens [1, n - 1]: token i + 2, from feature i and token i + 1."""
        steps = HeadSteps(self._target, self.network, SlotCache())
        growth = Growth(steps)
        growth.begin(1)
        dtype = self.network.fc.weight.dtype
        features = torch.cat([state.to(dtype) for state in states], dim=-1)[:, :-1]
        guessed = growth.feed(features, ids[:, 1:], [features.shape[1]])
        return steps.best(guessed, 1).tokens[..., 0]
