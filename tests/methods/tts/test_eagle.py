"""TTS over a draft head: what is computed again is what was drafted from, and it learns an answer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from harness.config import ConfigError
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Generation, Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.trees import DynamicTree
from harness.target.model import Target
from methods.eagle import Eagle
from methods.ngram import NGram
from methods.shared.cost_aware.policy import CostAwarePolicy
from methods.shared.eagle.steps import HeadSteps
from methods.tts import Tts
from methods.tts.learner import Recipe
from tests.support.online import slope, started, written_with_and_without
from tests.support.targets import VOCAB, engine, tiny_model

TREE = {"total_token": 9, "depth": 2, "top_k": 3}


def head(architecture: Any = "eagle3", **options: Any) -> Eagle:
    return Eagle(architecture=architecture, tree=DynamicTree(**TREE), head="random", **options)


@pytest.mark.parametrize("kind", ["eagle3", "eagle3, draft vocabulary", "eagle"])
def test_recalled_guesses_are_those_that_drafted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"draft_vocab_size": 40} if "vocabulary" in kind else {}
    drafter = head(kind.split(",")[0], **options)
    drafter.bind(engine().target)
    drafter.begin_learning()
    scored: list[torch.Tensor] = []
    original = HeadSteps.best

    def best(self: HeadSteps, states: torch.Tensor, num_children: int) -> Any:
        scored.append(self.score(states))
        return original(self, states, num_children)

    monkeypatch.setattr(HeadSteps, "best", best)
    draft = started(drafter)
    # Of the last draft: behind the pending token, then of each level that was expanded, best first.
    drafted = torch.cat([one[0] for one in scored[-1 - TREE["depth"] :]])
    rows = torch.unique(draft.parents[0] + 1)
    recalled = drafter.recall(draft, rows)().detach()
    assert recalled.shape == (len(rows), options.get("draft_vocab_size", VOCAB))
    for row in recalled:
        assert float((drafted - row).abs().amax(-1).min()) < 1e-4


def test_the_gradient_of_recalled_guesses_is_the_difference_quotient() -> None:
    drafter = head()
    drafter.bind(engine().target)
    module = drafter.begin_learning()
    draft = started(drafter)
    rows = torch.unique(draft.parents[0] + 1)
    recall = drafter.recall(draft, rows)
    weights = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(3))
    (recall() * weights).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        found = slope(lambda: (recall() * weights).sum(), parameter, 1e-2)
        assert found == pytest.approx(float(parameter.grad.norm()), rel=0.05), name


def tts(architecture: Any = "eagle3", rate: float = 1e-3, **options: Any) -> Tts:
    options.setdefault("stride", 1)
    return Tts(base=head(architecture), recipe=Recipe(learning_rate=rate), **options)


@pytest.mark.parametrize("architecture", ["eagle", "eagle3"])
@pytest.mark.parametrize("schedule", ["fixed_stride", "always", "bandit"])
def test_the_output_is_vanillas_whatever_is_learned(architecture: str, schedule: Any) -> None:
    loop = engine()
    drafter = tts(architecture, schedule=schedule)
    loop.target.set_taps(())
    drafter.bind(loop.target)
    learned, plain = written_with_and_without(drafter, loop)
    assert learned == plain
    if schedule != "bandit":
        assert all(lane.num_updates for lane in drafter.lanes)


@pytest.mark.parametrize("linear", ["plain", "packed"])
def test_looping_answers_are_learned_and_forgotten(linear: str) -> None:
    """Greedy answers of a random target end in loops, which the drafter has never seen."""
    loop = DecodingLoop(Target(copy.deepcopy(tiny_model("llama")), linear=linear), (), 512, timed=False)
    params = DecodingParams(name="greedy", max_new_tokens=130)
    prompts = [[5, 6, 7, 8], [9, 8, 11, 12, 10], [30, 3], [17, 20, 40, 41]]
    asked = [Request(prompt=prompt, key=number) for number, prompt in enumerate(prompts)]
    drafter = tts(rate=2e-3)
    drafter.bind(loop.target)
    before = [one.detach().clone() for one in drafter.base.network.parameters()]  # type: ignore[attr-defined]
    made = loop.generate(asked, drafter, params, Coupled())
    static = Tts(base=head(), schedule="never")
    static.bind(loop.target)
    plain = loop.generate(asked, static, params, Coupled())
    assert [one.output_ids for one in made] == [one.output_ids for one in plain]
    assert _last_quarter(made) >= 1.2 * _last_quarter(plain)
    drafter.reset(1)
    assert all(map(torch.equal, before, drafter.base.network.parameters()))  # type: ignore[attr-defined]
    again = loop.generate(asked[:1], drafter, params, Coupled())
    assert again[0].accepted == made[0].accepted


def _last_quarter(made: list[Generation]) -> float:
    """Acceptance length in the last quarter of each answer's rounds."""
    parts = [one.accepted[3 * len(one.accepted) // 4 :] for one in made]
    return 1 + sum(map(sum, parts)) / sum(map(len, parts))


def test_what_cannot_be_trained_on_line_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="NGram cannot be trained while it drafts"):
        Tts(base=NGram()).bind(engine().target)
    with pytest.raises(ConfigError, match=r"give the policy to methods\.tts\.policy"):
        Tts(base=head(policy=CostAwarePolicy())).bind(engine().target)
    with pytest.raises(ConfigError, match="has no streams"):
        tts(side_stream=True).bind(engine().target)
