"""The self-distillation of multi-token prediction (arXiv 2602.06019, section 3).

The student reads a text with masks and guesses a whole span, greedily and at once. The teacher, a frozen copy
of the model before training, reads the same text with these guesses in place of the masks, and so judges each
guess behind the earlier ones. The loss is the cross entropy of the student with the teacher's distribution,
or with its most probable token (`hard_teacher`).

Ours: the mean is over all guesses but those behind a guessed end of the text, spans begin where an answer is
to be continued, and the mask's row of the LM head stays zero, so that the mask itself is never emitted.

Shapes: L tokens of a row, S spans, k tokens of each, V vocabulary without the mask.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from harness.config import configurable
from harness.drafting.trainable import TrainingRow
from methods.mtp.packing import Packed, pack

MASK_KEY = "mtp_mask_token_id"
"""The entry of a model's config.json that names the mask."""


@configurable
class MtpRecipe:
    """The settings of the loss."""

    min_tokens: int = Field(default=2, ge=2)
    """Fewest tokens of a span; the number is drawn anew for every row."""
    max_tokens: int = Field(default=16, ge=2)
    """Most tokens of a span."""
    hard_teacher: bool = True
    """The teacher's most probable tokens are the labels; else its distributions."""
    true_labels: bool = False
    """The text's own tokens are the labels: the ablation without a teacher."""

    @model_validator(mode="after")
    def _ordered(self) -> MtpRecipe:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}; type a smaller one"
            )
        return self


def with_mask(model: Any, seed: int) -> Any:
    """Give a causal LM the mask: one more row of the embedding, drawn with mean and deviation of the others,
    and a row of zeros of the LM head, which is then one of its own. The model itself is changed.

    Returns it in float32.
    """
    model = model.float()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows, columns = embedding.weight.detach(), head.weight.detach()
    random = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows.shape[1], generator=random).to(rows.device)
    fresh = rows.mean() + rows.std() * drawn
    wider = nn.Embedding(len(rows) + 1, rows.shape[1], device=rows.device)
    wider.weight.data = torch.cat([rows, fresh[None]])
    output = nn.Linear(columns.shape[1], len(rows) + 1, bias=False, device=rows.device)
    output.weight.data = torch.cat([columns, torch.zeros_like(columns[:1])])
    model.set_input_embeddings(wider)
    model.set_output_embeddings(output)
    config = model.config.get_text_config()
    model.config.tie_word_embeddings = config.tie_word_embeddings = False
    config.vocab_size = len(rows) + 1
    setattr(config, MASK_KEY, len(rows))
    return model


def anchors_of(row: TrainingRow, recipe: MtpRecipe) -> Tensor:
    """Tokens behind which a span begins [S] int64: every 2 * max_tokens-th from a random offset on, where an
    answer follows. By torch's CPU generator."""
    every = 2 * recipe.max_tokens
    offset = int(torch.randint(every, (1,)))
    found = torch.arange(offset, len(row.ids) - 1, every, device=row.ids.device)
    follows = row.answer[found + 1] & (row.document[found + 1] == row.document[found])
    return found[follows]


def states_of(model: Any, packed: Packed, slots: Tensor) -> Tensor:
    """Final hidden states [*slots.shape, H] of a causal LM over a packed row."""
    made = model.get_decoder()(
        input_ids=packed.ids[None],
        position_ids=packed.positions[None],
        attention_mask=packed.sees[None, None],
        use_cache=False,
    )
    states: Tensor = made.last_hidden_state[0, slots]
    return states


def logits_of(model: Any, packed: Packed, slots: Tensor) -> Tensor:
    """Logits [*slots.shape, V] of all tokens but the mask."""
    logits: Tensor = model.get_output_embeddings()(states_of(model, packed, slots))[..., :-1]
    return logits.float()


def packed_row(row: TrainingRow, anchors: Tensor, num_tokens: int, mask: int) -> Packed:
    """The row with masks behind the anchors."""
    return pack(row.ids, row.positions, row.document, anchors, num_tokens, mask)


def span_loss(
    student: Any, teacher: Any, packed: Packed, recipe: MtpRecipe, end_ids: Collection[int], text: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of a packed row, and the student's top probability [S, k] of each guess.

    end_ids: tokens that end a text. text [S, k]: the text's own tokens of the spans, -1 where it has none.
    """
    logits = logits_of(student, packed, packed.spans)
    guesses = logits.argmax(-1)
    ends = torch.zeros_like(guesses, dtype=torch.bool)
    for token in end_ids:
        ends |= guesses == token
    counts = (ends.cumsum(-1) - ends.long()) == 0
    log_probs = logits.log_softmax(-1)
    if recipe.true_labels:
        counts = text >= 0
        losses = -log_probs.gather(-1, text.clamp(min=0)[..., None])[..., 0]
    else:
        with torch.no_grad():
            judged = logits_of(teacher, packed.filled(guesses), packed.spans)
        if recipe.hard_teacher:
            losses = -log_probs.gather(-1, judged.argmax(-1, keepdim=True))[..., 0]
        else:
            losses = -(judged.softmax(-1) * log_probs).sum(-1)
    loss = (losses * counts).sum() / counts.sum().clamp(min=1)
    return loss, log_probs.detach().amax(-1).exp()
