"""MTP: multi-token prediction by self-distillation (arXiv 2602.06019).

The target was trained to read mask tokens behind a text and to predict one token by each, at once. The masks
ride along in every forward; what they predict is the next draft. There is no second model.

With `accept=all` nothing is verified, as in the paper: `confidence=null` keeps the draft whole (static
k), a number keeps it up to the first token whose probability is not above it (ConfAdapt). That output is the
model's own in another order, and lossy. With `accept=coupled` the next forward verifies the draft, and the
output is that of the trained model at k = 1, token for token. `masks=every` then has masks behind every
drafted token, so that there is a draft whichever token is the last to be kept.

The model is trained by `python -m harness.train method=mtp`, which writes a whole model; measure with
`target=hub target.path=FOLDER`.

Shapes: B sequences, n drafted nodes, r riders, V vocabulary, k predicted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.draft import Draft, Riders
from harness.drafting.drafter import Outcome, TargetView
from harness.drafting.trainable import Loss, TrainableDrafter, TrainingRow, TrainingStep
from harness.system.files import write_json
from methods.mtp.training import MASK_KEY, MtpRecipe, anchors_of, packed_row, span_loss, with_mask


@configurable
class Mtp(TrainableDrafter):
    """Drafts what the target's masks predict."""

    exports_model: ClassVar[bool] = True
    num_tokens: int = Field(default=4, ge=1)
    """k: tokens that a forward predicts; k - 1 masks ride along."""
    confidence: float | None = Field(default=None, ge=0)
    """A draft ends before the first token whose probability is not above this; None keeps all."""
    masks: Literal["last", "every"] = "last"
    """Masks behind the last drafted token alone, or behind every one."""
    mask_token: int | None = Field(default=None, ge=0)
    """Id of the mask; None takes what the target's config.json says."""
    recipe: MtpRecipe = Field(default_factory=MtpRecipe)
    """Its training."""

    @override
    def bind(self, target: TargetView) -> None:
        super().bind(target)
        self._mask = self.mask_token
        if self._mask is None:
            self._mask = getattr(target.config, MASK_KEY, None)
        if self._mask is not None and self._mask >= target.vocab_size:
            raise ConfigError(
                f"mask_token={self._mask}: the target's vocabulary is"
                f" 0..{target.vocab_size - 1}; leave it out"
            )
        self._network: Any = None

    @override
    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Refuse a target that has no mask.

        Raises:
            ConfigError: it was not trained to read any.
        """
        if self._mask is None and self._network is None:
            raise ConfigError(
                "mask_token: the target was not trained to predict several tokens; train a copy with"
                " python -m harness.train method=mtp, and measure that with target=hub target.path=FOLDER"
            )

    @override
    def reset(self, num_rows: int) -> None:
        self._drafts: list[list[int]] = [[] for _ in range(num_rows)]
        self._texts: list[list[int]] = [[] for _ in range(num_rows)]
        self._caches = [DynamicCache() for _ in range(num_rows)] if self._network is not None else []

    @override
    def propose(self, room: Sequence[int]) -> Draft:
        device = self._target.device
        if self._network is not None:
            self._drafts = [self._predicted(row) for row in range(len(self._drafts))]
        drafts = [draft[:limit] for draft, limit in zip(self._drafts, room, strict=True)]
        rows = [torch.tensor(draft, dtype=torch.int64) for draft in drafts]
        size = torch.tensor([len(draft) for draft in drafts], device=device)
        chain = Draft.chain(pad_sequence(rows, batch_first=True).to(device), size)
        if self._network is not None or self.num_tokens == 1:
            return chain
        return Draft(
            tokens=chain.tokens,
            parents=chain.parents,
            size=size,
            is_chain=True,
            riders=self._riders(size, chain.width),
        )

    def _riders(self, size: Tensor, width: int) -> Riders:
        """k - 1 masks behind the last drafted token of each row, or behind the pending one and all nodes."""
        assert self._mask is not None, "`check` refuses a target without a mask"
        num_rows, num_masks, device = len(size), self.num_tokens - 1, size.device
        anchors = size[:, None]
        if self.masks == "every":
            anchors = torch.arange(width + 1, device=device).expand(num_rows, -1)
        number = torch.arange(1, num_masks + 1, device=device)
        offsets = (anchors[..., None] + number).flatten(1)
        # A mask sees the path down to its anchor, and the masks of this anchor up to itself.
        columns = torch.arange(width + 1, device=device)
        path = (columns <= anchors[..., None])[:, :, None].expand(-1, -1, num_masks, -1).flatten(1, 2)
        block = torch.ones(num_masks, num_masks, dtype=torch.bool, device=device).tril()
        eye = torch.eye(anchors.shape[1], device=device)
        own = torch.kron(eye, block.float()).bool().expand(num_rows, -1, -1)
        return Riders(
            tokens=torch.full_like(offsets, self._mask),
            offsets=offsets,
            visible=torch.cat([path, own], dim=-1),
        )

    @override
    def observe(self, outcome: Outcome) -> None:
        rows = range(len(self._drafts)) if outcome.rows is None else outcome.rows
        for row, committed, pending in zip(rows, outcome.committed, outcome.pending, strict=True):
            begins = outcome.draft is None
            self._texts[row] = [*([] if begins else self._texts[row][:-1]), *committed, pending]
            self._drafts[row] = []
            if begins and self._network is not None:
                self._caches[row] = DynamicCache()
        if outcome.rider_logits is None or outcome.draft is None or outcome.logits is None:
            return
        for row, committed in enumerate(outcome.committed):
            number = len(committed) - 1
            if self.masks == "last":
                if number < int(outcome.draft.size[row]):
                    continue
                number = 0
            begin = number * (self.num_tokens - 1)
            own = outcome.rider_logits[row, begin : begin + self.num_tokens - 1]
            first = outcome.logits[row, len(committed) - 1 : len(committed)]
            self._drafts[row] = self._confident(torch.cat([first, own]))[1:]

    def _confident(self, logits: Tensor) -> list[int]:
        """The predicted tokens that are kept, from logits [k, V] of all: at least the first."""
        if self._mask is not None and self._mask < logits.shape[-1]:
            logits = logits.clone()
            logits[:, self._mask] = -torch.inf
        best = logits.float().softmax(-1).max(-1)
        tokens: list[int] = best.indices.tolist()
        if self.confidence is None:
            return tokens
        sure = [bool(one) for one in (best.values > self.confidence).tolist()]
        count = sure.index(False) if False in sure else len(sure)
        return tokens[: max(count, 1)]

    @override
    def keep(self, rows: Sequence[int]) -> None:
        self._drafts = [self._drafts[row] for row in rows]
        self._texts = [self._texts[row] for row in rows]
        self._caches = [self._caches[row] for row in rows] if self._caches else []

    @torch.no_grad()
    def _predicted(self, row: int) -> list[int]:
        """What the network in training predicts behind a text; its cache keeps the text."""
        cache, text = self._caches[row], self._texts[row]
        known = cache.get_seq_length()
        fresh = text[known:]
        ids = torch.tensor([[*fresh, *[self._trained_mask] * (self.num_tokens - 1)]])
        made = self._network(
            ids.to(self._target.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=self.num_tokens,
        )
        if self.num_tokens > 1:
            cache.crop(-(self.num_tokens - 1))
        return self._confident(made.logits[0, :, :-1])

    @override
    def begin_training(self, counts: Tensor, rows: Sequence[TrainingRow], seed: int) -> torch.nn.Module:
        """The target with a mask is trained; a frozen copy of it teaches."""
        self._student = with_mask(self._target.copied_model(), seed).train().requires_grad_(True)
        self._student.get_output_embeddings().weight.register_hook(_without_mask)
        self._teacher = with_mask(self._target.copied_model(), seed).eval().requires_grad_(False)
        self._trained_mask = self._target.vocab_size
        end = self._target.config.eos_token_id
        self._ends = {*end} if isinstance(end, list) else {end} - {None}
        module: torch.nn.Module = self._student
        return module

    @override
    def loss(self, rows: Sequence[TrainingRow], step: TrainingStep) -> Loss:
        (row,), recipe = rows, self.recipe
        num_tokens = int(torch.randint(recipe.min_tokens, recipe.max_tokens + 1, (1,)))
        anchors = anchors_of(row, recipe)
        if not len(anchors):
            return Loss(total=0.0 * self._student.get_output_embeddings().weight.sum())
        packed = packed_row(row, anchors, num_tokens, self._trained_mask)
        text = self._text(row, anchors, num_tokens)
        total, confidence = span_loss(self._student, self._teacher, packed, recipe, self._ends, text)
        numbers = {f"confidence_{place}": float(one) for place, one in enumerate(confidence.mean(0)[:4], 1)}
        return Loss(total=total, numbers=numbers)

    @staticmethod
    def _text(row: TrainingRow, anchors: Tensor, num_tokens: int) -> Tensor:
        """[S, k]: the text's own tokens behind the anchors, -1 behind the end of the document."""
        places = anchors[:, None] + torch.arange(1, num_tokens + 1, device=anchors.device)
        inside = places < len(row.ids)
        places = places.clamp(max=len(row.ids) - 1)
        inside &= row.document[places] == row.document[anchors][:, None]
        return torch.where(inside, row.ids[places], -1)

    @override
    def deploy(self) -> None:
        """Draft with the network in training behind a cache of its own, for the target that it comes from."""
        self._network = self._student.eval()

    @override
    def export(self, folder: Path, card: dict[str, Any]) -> None:
        """Write the whole model, as transformers loads it."""
        self._student.save_pretrained(folder)
        write_json(folder / "card.json", card, indent=2)


def _without_mask(gradient: Tensor) -> Tensor:
    """The gradient of the LM head; the mask's row stays as it is."""
    gradient = gradient.clone()
    gradient[-1] = 0.0
    return gradient
