"""Unrolled steps of EAGLE-3 heads, repeated by growing a chain from every row as a round does.

A recorded step guesses from the outputs of the step before it. The same guesses come out when the pairs up to
a row are fed, and the following true tokens are then expanded as a chain.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.conformance.case import Case, Check, Targets, close
from harness.conformance.declared import Declared
from harness.runtime.cache import SlotCache

_DECLARED = Declared("eagle31")
_ENOUGH_LAYERS = 1 << 10
"""The features are recorded, so the target need not have the blocks that the head names."""


def claims(case: Case) -> bool:
    """Whether the case is one of this family."""
    return case.data.get("family") == "eagle31"


@torch.no_grad()
def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare the log-probabilities of every step."""
    target, tensors, num_steps = targets.of(case), case.tensors, case.data["ttt_steps"]
    checkpoint, steps, growth = map(_DECLARED.module, ("checkpoint", "steps", "growth"))
    facts = checkpoint.TargetFacts(
        hidden_size=target.config.hidden_size, vocab_size=target.vocab_size, num_layers=_ENOUGH_LAYERS
    )
    loaded = checkpoint.load_head(
        str(case.model_folder),
        revision=None,
        architecture="eagle3",
        target=facts,
        dtype=torch.float32,
        device=target.device,
    )
    ours: list[list[Tensor]] = [[] for _ in range(num_steps)]
    length = tensors["ids"].shape[1]
    for row in range(length):
        grown = growth.Growth(steps.HeadSteps(target, loaded.head, SlotCache()))
        grown.begin(1)
        grown.feed(tensors["features"][:, : row + 1], tensors["ids"][:, : row + 1], [row + 1])
        proposed = grown.start(loaded.head.shape.draft_vocab_size)
        ours[0].append(_by_draft_id(proposed, loaded.head))
        for step in range(1, min(num_steps, length - row)):
            token, parent = tensors["ids"][:, row + step, None], torch.tensor([[step - 2]])
            proposed = grown.expand(token, parent, loaded.head.shape.draft_vocab_size)
            ours[step].append(_by_draft_id(proposed, loaded.head))
    # In later steps the last rows have no true token any more.
    return [
        close(
            f"step {step}",
            torch.stack(rows),
            tensors[f"step{step}.logits"][0, : len(rows)].log_softmax(-1),
        )
        for step, rows in enumerate(ours)
    ]


def _by_draft_id(proposed: Any, head: Any) -> Tensor:
    """Log-probabilities [V] in the order of the draft vocabulary."""
    wide = torch.full((head.shape.vocab_size,), -torch.inf)
    wide[proposed.tokens.flatten()] = proposed.log_probs.flatten()
    return wide[head.target_ids(torch.arange(head.shape.draft_vocab_size))]
