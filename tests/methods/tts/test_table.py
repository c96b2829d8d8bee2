"""TTS over tables, where every update can be computed by hand; one answer is 2,000 tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.conformance.tts.family import TableTarget
from harness.conformance.tts.table import TableDrafter
from harness.decoding.acceptance import Coupled, Rejection
from harness.decoding.decision import read
from harness.decoding.sampling import DecodingParams, TokenSampler
from harness.drafting.draft import Draft
from harness.drafting.drafter import Outcome
from methods.tts import Tts
from methods.tts.learner import Recipe

VOCAB, DRAFTED, NUM_TOKENS = 16, 4, 2000
GREEDY = DecodingParams(name="greedy")
SAMPLED = DecodingParams(name="sampled", temperature=1.0)


def table(seed: int = 0, sharpness: float = 2.5) -> TableTarget:
    noise = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return TableTarget((sharpness * noise).softmax(-1))


def tts(recipe: dict[str, Any] | None = None, draws: bool = False, **settings: Any) -> Tts:
    zeros = torch.zeros(VOCAB, VOCAB).tolist()
    base = TableDrafter(theta=zeros, draft_length=DRAFTED, draws=draws)
    return Tts(base=base, recipe=Recipe(**{"learning_rate": 0.05, **(recipe or {})}), **settings)


@dataclass
class Answer:
    tokens: list[int]
    accepted: list[int]
    drafts: list[Draft]
    guesses: list[Tensor]
    """The published table at each draft."""

    def mean_accepted(self, begin: float, end: float) -> float:
        part = self.accepted[int(begin * len(self.accepted)) : int(end * len(self.accepted))]
        return sum(part) / len(part)


def answer(
    drafter: Tts,
    target: TableTarget,
    params: DecodingParams = SAMPLED,
    acceptor: Any = None,
    num_tokens: int = NUM_TOKENS,
) -> Answer:
    """An answer as the loop decodes it, over a table."""
    if not hasattr(drafter, "lanes"):
        drafter.bind(target)  # type: ignore[arg-type]
    acceptor = acceptor or Coupled()
    sampler = TokenSampler(params, [7], VOCAB, torch.device("cpu"))
    made = Answer([3], [], [], [])
    drafter.reset(1)
    drafter.observe(Outcome(committed=[[1, 2]], pending=[3]))
    while len(made.tokens) < num_tokens:
        made.guesses.append(drafter.base.logits.clone())  # type: ignore[attr-defined]
        draft = drafter.propose([DRAFTED])
        made.drafts.append(draft)
        logits = target.logits(made.tokens[-1], draft)
        decision = read(
            acceptor.accept(logits, draft, sampler, torch.tensor([len(made.tokens)])), draft, logits
        )
        path, pending = decision.path_tokens[0], made.tokens[-1]
        made.tokens += [*path, decision.token[0]]
        made.accepted.append(len(path))
        drafter.observe(
            Outcome(committed=[[pending, *path]], pending=[decision.token[0]], draft=draft, logits=logits)
        )
    return made


def same(one: Answer, other: Answer) -> bool:
    return one.accepted == other.accepted and all(map(torch.equal, one.guesses, other.guesses))


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=lambda params: params.name)
def test_the_output_is_the_static_drafters(params: DecodingParams) -> None:
    learned = answer(tts(stride=1), table(), params, num_tokens=300)
    static = answer(tts(schedule="never"), table(), params, num_tokens=300)
    assert learned.tokens[:300] == static.tokens[:300]


def test_without_a_learning_rate_it_is_the_static_drafter_bit_for_bit() -> None:
    assert same(
        answer(tts({"learning_rate": 0.0}, stride=1), table(), num_tokens=300),
        answer(tts(schedule="never"), table(), num_tokens=300),
    )


def test_a_single_step_is_independent_of_the_proximal_term() -> None:
    """Its gradient is zero at the weights that the guesses came from."""
    one, other = (
        answer(tts({"proximal": proximal}, stride=2), table(), num_tokens=300) for proximal in (0.0, 1e3)
    )
    for mine, theirs in zip(one.guesses, other.guesses, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


def test_a_large_proximal_term_keeps_the_guesses_where_updates_have_several_steps() -> None:
    """Adam normalises a gradient whatever its size, so a first step without a proximal gradient counts."""
    recipe = {"num_steps": 200, "learning_rate": 1e-3}
    moved = {
        proximal: (
            answer(tts({**recipe, "proximal": proximal}, stride=1), table(), num_tokens=6)
            .guesses[-1]
            .softmax(-1)
            - 1 / VOCAB
        )
        .abs()
        .max()
        for proximal in (0.0, 1e9)
    }
    assert moved[1e9] < 0.05 * moved[0.0]


def test_a_small_step_brings_the_guesses_of_its_round_closer() -> None:
    drafter = tts({"learning_rate": 1e-3}, stride=1)
    answer(drafter, table(), num_tokens=50)
    learner, (example,) = drafter.lanes[0].learner, drafter.lanes[0].examples
    assert learner is not None
    after = learner.loss([example], learner.guesses([example]).detach())
    assert after.target < learner.terms.target


@pytest.mark.parametrize("stride", [1, 4, 16])
def test_there_is_one_step_every_stride_rounds(stride: int) -> None:
    drafter = tts(stride=stride)
    made = answer(drafter, table(), num_tokens=400)
    assert drafter.lanes[0].num_updates == len(made.accepted) // stride


def expected_accepted(target: TableTarget, guessed: Tensor) -> float:
    """Accepted tokens per round of greedy chains drafted by a table, over the target's stationary
    distribution of rounds' beginnings."""
    probs = target.probs
    best = guessed.argmax(-1)
    hit = probs[torch.arange(VOCAB), best]
    state = torch.full((VOCAB,), 1 / VOCAB, dtype=torch.float64)
    for _ in range(200):
        # A round from `state`: where it ends, the next one begins.
        ends, alive, token = torch.zeros_like(state), state.clone(), torch.arange(VOCAB)
        mean = torch.zeros((), dtype=torch.float64)
        for _ in range(DRAFTED):
            missed = probs[token].clone()
            missed[torch.arange(VOCAB), best[token]] = 0.0
            ends += (alive[:, None] * missed).sum(0)
            alive, token = alive * hit[token], best[token]
            mean += alive.sum()
        ends += (alive[:, None] * probs[token]).sum(0)
        state = ends / ends.sum()
    return float(mean)


def test_the_last_quarter_accepts_what_the_converged_table_would_and_much_more_than_the_static_one() -> None:
    target = table()
    learned = answer(tts(stride=1), target)
    static = answer(tts(schedule="never"), target)
    assert learned.mean_accepted(0.75, 1) > 1.5 * static.mean_accepted(0.75, 1)
    converged = expected_accepted(target, target.probs)
    assert learned.mean_accepted(0.75, 1) == pytest.approx(converged, rel=0.1)


def test_the_next_answer_begins_with_the_loaded_weights_and_repeats_the_trace() -> None:
    drafter, target = tts(stride=2), table()
    first = answer(drafter, target, num_tokens=400)
    assert not torch.equal(drafter.base.logits, first.guesses[0])  # type: ignore[attr-defined]
    again = answer(drafter, target, num_tokens=400)
    assert torch.equal(again.guesses[0], first.guesses[0])
    assert again.tokens == first.tokens
    assert same(again, first)


def test_the_distribution_of_a_drawn_token_is_that_of_the_weights_that_drafted_it() -> None:
    drafter = tts(draws=True, stride=1)
    made = answer(drafter, table(), acceptor=Rejection(), num_tokens=200)
    moved = 0
    for draft, guesses in zip(made.drafts, made.guesses, strict=True):
        assert draft.probs is not None
        before = [draft.tokens[0, 0], *draft.tokens[0, :-1]]
        rows = guesses.softmax(-1)
        assert torch.equal(draft.probs[0, 1:], rows[torch.stack(before[1:])])
        moved += not torch.equal(guesses, made.guesses[0])
    assert moved == len(made.drafts) - 1


def test_several_steps_and_rounds_of_an_update_are_counted_as_asked() -> None:
    drafter = tts({"num_steps": 3, "num_rounds": 4}, stride=5)
    answer(drafter, table(), num_tokens=120)
    learner = drafter.lanes[0].learner
    assert learner is not None
    assert len(drafter.lanes[0].examples) == 4
    assert learner.before.shape == (4 * DRAFTED, VOCAB)
    (state,) = learner._optimizer.state_dict()["state"].values()
    assert state["step"] == 3 * drafter.lanes[0].num_updates
