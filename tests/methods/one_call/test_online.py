"""Drafters with one or two calls, trained on line: what is computed again is what was drafted from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.drafting.draft import Draft
from harness.drafting.trees import DynamicTree
from harness.target.model import Target
from methods.fasteagle.growth import CascadeSteps
from methods.specblock.network import BlockNetwork
from methods.specblock.tree import RankTree
from methods.tts import Tts
from tests.methods.one_call.drafters import METHODS, bound, made
from tests.support.online import check_learning, check_output, slope, started
from tests.support.targets import tiny_model

LEVELS = {"tree": DynamicTree(total_token=14, depth=4, top_k=4)}
CASES: list[tuple[str, dict[str, Any], float]] = [
    ("specblock", LEVELS, 1.0),
    ("specblock", {**LEVELS, "rows": "released"}, 1.0),
    ("specblock", {"tree": RankTree(budget=12, first_width=4, widths=(3, 3, 3, 3), max_blocks=1)}, 1.0),
    # Of two blocks that proposed the same path, one is computed again.
    ("specblock", {}, 0.6),
    ("fasteagle", {}, 1.0),
]
"""Method, its settings, and the share of guesses that must be exactly those that drafted."""


@pytest.mark.parametrize(("method", "options", "share"), CASES)
def test_recalled_guesses_are_those_that_drafted(
    method: str, options: dict[str, Any], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = bound(method, **options)
    drafter.begin_learning()
    scored: list[torch.Tensor] = []
    if method == "specblock":
        original = BlockNetwork.rank_logits

        def rank_logits(self: Any, states: Any, logits: torch.Tensor, count: int) -> Any:
            scored.append(logits[0].flatten(0, 1))
            return original(self, states, logits, count)

        monkeypatch.setattr(BlockNetwork, "rank_logits", rank_logits)
    else:
        kept = CascadeSteps._guess

        def guess(self: CascadeSteps, outputs: torch.Tensor, count: int) -> Any:
            levels = [self.network.normed(outputs[0, level], level) for level in range(outputs.shape[1])]
            scored.append(self.vocabulary.logits(torch.stack(levels)))
            return kept(self, outputs, count)

        monkeypatch.setattr(CascadeSteps, "_guess", guess)
    begin, propose = [0], drafter.propose

    def proposed(room: Any) -> Draft:
        begin.append(len(scored))
        return propose(room)  # type: ignore[no-any-return]

    monkeypatch.setattr(drafter, "propose", proposed)
    draft = started(drafter)
    drafted = torch.cat(scored[begin[-1] :])
    rows = torch.unique(draft.parents[0] + 1)
    assert len(rows) > 2
    recalled = drafter.recall(draft, rows)().detach()
    same = [float((drafted - row).abs().amax(-1).min()) < 1e-4 for row in recalled]
    assert sum(same) >= share * len(same)


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_of_recalled_guesses_is_the_difference_quotient(method: str) -> None:
    drafter = bound(method)
    module = drafter.begin_learning()
    draft = started(drafter)
    rows = torch.unique(draft.parents[0] + 1)
    recall = drafter.recall(draft, rows)
    weights = torch.randn(len(rows), 24, generator=torch.Generator().manual_seed(3))
    (recall() * weights).sum().backward()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad or parameter.grad is None:
            # A level that nothing was drafted from has no guess.
            assert name.startswith(("rank_head", "norms.", "layers.2"))
            continue
        found = slope(lambda: (recall() * weights).sum(), parameter, 3e-3)
        assert found == pytest.approx(float(parameter.grad.norm()), rel=0.05, abs=0.05), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schedule", ["always", "bandit"])
def test_the_output_is_vanillas_whatever_is_learned(method: str, schedule: Any) -> None:
    check_output(made(method), schedule)


@pytest.mark.parametrize("method", METHODS)
def test_the_bandit_can_train_the_output_alone_where_there_is_one(method: str) -> None:
    drafter = Tts(base=made(method))
    drafter.bind(Target(tiny_model("llama")))
    (lane,) = drafter.lanes
    assert lane.learner is not None
    assert lane.learner.parts == (("head", "full") if method == "specblock" else ("full",))
    if method == "fasteagle":
        return
    before = {name: one.clone() for name, one in lane.learner.module.named_parameters()}
    lane.rehearsed(drafter._target, "head")(1)
    moved = {
        name for name, one in lane.learner.module.named_parameters() if not torch.equal(one, before[name])
    }
    assert moved == {"lm_head.weight"}


@pytest.mark.parametrize("method", METHODS)
def test_a_round_is_learned_and_forgotten(method: str) -> None:
    check_learning(made(method), 2e-3, num_updates=12)
