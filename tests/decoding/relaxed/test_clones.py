"""A target of clones: an alphabet in which four ids each mean the same, as entries of a codebook do.

A drafter that knows the group and not the clone has a quarter of its guesses kept by strict acceptance. A
relaxed one keeps them, and the groups of what is written follow the target's own distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.config import configurable
from harness.decoding.acceptance import Acceptor, Coupled
from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.relaxed.cascade import Cascade
from harness.decoding.relaxed.lantern import Lantern
from harness.decoding.sampling import DecodingParams, stream_key
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, Outcome
from harness.target.image.guidance import Guidance, Raster
from harness.target.image.guided import GuidedTarget
from harness.target.model import Target

GROUPS, CLONES, RASTER = 16, 4, 4
VOCAB = GROUPS * CLONES
NUM_RASTERS = 4000
BATCH = 500
PARAMS = DecodingParams(name="sampled", temperature=1.0, max_new_tokens=RASTER)


@cache
def clones(distinct: bool = False, guided: bool = False) -> Target:
    """A random model whose clones have the same embedding and row of the LM head, but for noise of 0.01.

    guided: with two tokens more, a text and one that opens an image, under guidance.
    """
    torch.manual_seed(0)
    size = VOCAB + 2 * guided
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )
    with torch.no_grad():
        for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            groups = torch.randn(GROUPS, 32).repeat_interleave(CLONES, 0)
            weight[:VOCAB] = torch.randn(VOCAB, 32) if distinct else groups + 0.01 * torch.randn(VOCAB, 32)
        # Logits of a few nats, so that some groups are much likelier than others.
        model.get_output_embeddings().weight.mul_(0.35)
    if not guided:
        return Target(model.eval())
    raster = Raster(height=2, width=RASTER // 2, pixels=range(VOCAB))
    guidance = Guidance(scale=1.5, opens=VOCAB + 1, begins=VOCAB + 1, raster=raster)
    return GuidedTarget(model.eval(), guidance=guidance)


@configurable
class GroupGuesser(Drafter):
    """Drafts the likeliest group after a token: `num_siblings` of its clones, at random, and the same again
    behind the first of them."""

    num_siblings: int = 1
    depth: int = 3

    def bind(self, target: Any) -> None:
        super().bind(target)
        ids = torch.tensor([[*prompt(target), token] for token in range(VOCAB)])
        probs = target.trace(ids, ())[0][:, -1, :VOCAB].softmax(-1)
        self._best = probs.view(VOCAB, GROUPS, CLONES).sum(-1).argmax(-1)

    def reset(self, num_rows: int) -> None:
        self._last = torch.zeros(num_rows, dtype=torch.int64)
        self._random = torch.Generator().manual_seed(0)

    def observe(self, outcome: Outcome) -> None:
        self._last = torch.tensor(outcome.pending)

    def keep(self, rows: Sequence[int]) -> None:
        self._last = self._last[list(rows)]

    def propose(self, room: Sequence[int]) -> Draft:
        last, levels = self._last, []
        for _ in range(self.depth):
            clones = torch.rand(len(last), CLONES, generator=self._random).argsort(-1)
            levels.append(self._best[last][:, None] * CLONES + clones[:, : self.num_siblings])
            last = levels[-1][:, 0]
        tokens = torch.cat(levels, dim=1)
        level = torch.arange(tokens.shape[1]) // self.num_siblings
        parents = torch.where(level > 0, (level - 1) * self.num_siblings, -1)
        return Draft(
            tokens=tokens,
            parents=parents.expand_as(tokens).contiguous(),
            size=torch.full((len(tokens),), tokens.shape[1]),
        )


def prompt(target: Any) -> list[int]:
    """Two tokens; the last opens the image of a guided target."""
    return [target.vocab_size - 2, target.vocab_size - 1] if isinstance(target, GuidedTarget) else [1, 2]


def rasters(
    acceptor: Acceptor, count: int, siblings: int = 1, distinct: bool = False, guided: bool = False
) -> tuple[Any, float]:
    """Groups [count, RASTER] of what is written, and accepted tokens per round."""
    loop = DecodingLoop(clones(distinct, guided), (), 24, timed=False)
    drafter = GroupGuesser(num_siblings=siblings)
    drafter.bind(loop.target)
    acceptor.bind(loop.target)
    outputs, accepted, rounds = [], 0, 0
    for begin in range(0, count, BATCH):
        asked = [
            Request(prompt=prompt(loop.target), key=stream_key(0, str(number), 0, 0))
            for number in range(begin, min(begin + BATCH, count))
        ]
        for made in loop.generate(asked, drafter, PARAMS, acceptor):
            outputs.append(made.output_ids)
            # The last rounds have no room, and what is drafted there cannot count.
            accepted += made.accepted[0] if made.accepted else 0
            rounds += bool(made.accepted)
    return torch.tensor(outputs) // CLONES, accepted / rounds


def distance(one: Any, other: Any) -> float:
    """Total variation between the marginals of places, and between pairs of neighbours: the largest."""
    worst = 0.0
    for place in range(RASTER):
        counts = [torch.bincount(part[:, place], minlength=GROUPS) / len(part) for part in (one, other)]
        worst = max(worst, 0.5 * float((counts[0] - counts[1]).abs().sum()))
    return worst


RELAXED: dict[str, tuple[Acceptor, int]] = {
    "lantern": (Lantern(delta=1.0, num_neighbours=CLONES - 1), 1),
    "cascade": (Cascade(tau_breadth=0.95, delta=1.0), CLONES),
}


@cache
def sampled_alone(guided: bool) -> Any:
    """What plain sampling writes, with other noise."""
    groups, _ = rasters(Coupled(), NUM_RASTERS, guided=guided)
    return groups


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", RELAXED)
def test_groups_keep_their_distribution_at_three_times_the_acceptance(name: str, guided: bool) -> None:
    acceptor, siblings = RELAXED[name]
    groups, relaxed = rasters(acceptor, NUM_RASTERS, siblings, guided=guided)
    assert distance(groups, sampled_alone(guided)) < 0.05
    strict = rasters(Coupled(), 1000, 1, guided=guided)[1]
    assert relaxed >= 3 * strict


@pytest.mark.parametrize("kind", [Cascade, Lantern])
def test_acceptance_under_guidance_falls_as_thresholds_rise_and_ends_strict(kind: Any) -> None:
    if kind is Cascade:
        rules = [Cascade(tau_breadth=tau, tau_depth=2, delta=1.0) for tau in (0.0, 0.95, 2.0)]
    else:
        rules = [Lantern(delta=delta, num_neighbours=CLONES - 1) for delta in (1.0, 0.1, 0.0)]
    found = [rasters(rule, 200, CLONES, guided=True) for rule in rules]
    strict = rasters(Coupled(), 200, CLONES, guided=True)
    lengths = [accepted for _, accepted in found]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1] == strict[1]
    assert torch.equal(found[-1][0], strict[0])


def test_strict_acceptance_keeps_a_quarter_of_what_groups_alone_would() -> None:
    lantern, siblings = RELAXED["lantern"]
    ceiling, strict = rasters(lantern, 2000, siblings)[1], rasters(Coupled(), 2000)[1]
    # Of the first level a quarter, of deeper ones a smaller share.
    assert strict < 0.25 * ceiling


def test_distinct_embeddings_are_not_relaxed() -> None:
    """The negative control: states tell the tokens apart."""
    made = [
        rasters(acceptor, 500, CLONES, distinct=True)
        for acceptor in (Cascade(tau_breadth=0.95, tau_depth=0.95, delta=1.0), Coupled())
    ]
    (groups, relaxed), (same, strict) = made
    assert torch.equal(groups, same)
    assert relaxed == strict
