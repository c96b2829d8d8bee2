"""Block drafters and P-EAGLE, trained on line: what is computed again is what was drafted from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.config import ConfigError
from harness.decoding.loop import DecodingLoop
from harness.drafting.drafter import Outcome
from harness.drafting.online import OnlineDrafter
from harness.target.model import Target
from methods.ddtree import DDTree
from methods.dflash import DFlash
from methods.peagle import PEagle
from methods.tts import Tts
from methods.tts.learner import Recipe, example_of
from methods.tts.schedules import BanditSettings
from tests.methods.block.heads import PARTS, network_of
from tests.support.online import slope, started, written_with_and_without
from tests.support.targets import VOCAB, tiny_model

SHAPES: dict[str, dict[str, Any]] = {
    "dflash": {},
    "sliding": {"sliding": (True, False), "window": 4, "causal": (True, False)},
    "own-parts": {"own_embedding": True, "own_lm_head": True},
    "dspark": PARTS["dspark"],
    "ddtree": {},
}
METHODS = (*SHAPES, "peagle")


def made(method: str) -> OnlineDrafter:
    if method == "peagle":
        return PEagle(head="random", num_layers=2, draft_length=4, draft_vocab_size=24)
    kind = "dspark" if method == "dspark" else "dflash"
    settings: dict[str, Any] = {"kind": kind, "head": "random", "num_layers": 2, "block_size": 5}
    return DDTree(budget=9, width=2, **settings) if method == "ddtree" else DFlash(**settings)


def bound(method: str) -> Any:
    """A drafter whose weights are far from their initial values."""
    drafter: Any = made(method)
    drafter.bind(Target(tiny_model("llama")))
    if method == "peagle":
        with torch.no_grad():
            torch.manual_seed(2)
            for name, parameter in drafter.network.named_parameters():
                if parameter.ndim > 1 and "embed" not in name:
                    torch.nn.init.normal_(parameter, std=0.3)
    else:
        drafter.use(network_of(**SHAPES[method]))
    head = drafter.network.head if method == "peagle" else drafter.network
    with torch.no_grad():
        # Features of uneven size, which `fc` and what it reads in their place make good.
        uneven = 2.0 ** (torch.arange(head.fc.weight.shape[1]) % 4)
        head.fc.weight.mul_(uneven / 4)
        if method == "peagle":
            drafter.network.mask_hidden.copy_(torch.randn(drafter.network.mask_hidden.shape) / uneven)
    return drafter


def drafted_logits(drafter: Any, method: str) -> torch.Tensor:
    """[k, V]: what the last draft of one sequence was made of."""
    if method == "peagle":
        return drafter.logits[0]  # type: ignore[no-any-return]
    if method == "ddtree":
        return drafter.network.logits(drafter.states[0, 1:], drafter._target)  # type: ignore[no-any-return]
    return drafter.drawn.logits[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", METHODS)
def test_recalled_guesses_are_those_that_drafted(method: str) -> None:
    drafter = bound(method)
    drafter.begin_learning()
    draft = started(drafter)
    rows = torch.unique(draft.parents[0] + 1)
    assert len(rows) > 2
    levels = torch.nn.functional.pad(draft.depths[0], (1, 0))[rows]
    recalled = drafter.recall(draft, rows)()
    assert torch.allclose(recalled, drafted_logits(drafter, method)[levels], atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_of_recalled_guesses_is_the_difference_quotient(method: str) -> None:
    drafter = bound(method)
    module = drafter.begin_learning()
    draft = started(drafter)
    rows = torch.unique(draft.parents[0] + 1)
    recall = drafter.recall(draft, rows)
    weights = torch.randn(recall().shape, generator=torch.Generator().manual_seed(3))
    (recall() * weights).sum().backward()
    trained = {name: one for name, one in module.named_parameters() if one.requires_grad}
    assert any(name.endswith("fc.weight") for name in trained)
    assert not any(part in name for name in trained for part in ("embed_tokens", "confidence_head"))
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        found = slope(lambda: (recall() * weights).sum(), parameter, 3e-3)
        assert found == pytest.approx(float(parameter.grad.norm()), rel=0.05, abs=0.05), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schedule", ["always", "bandit"])
def test_the_output_is_vanillas_whatever_is_learned(method: str, schedule: Any) -> None:
    loop = DecodingLoop(Target(tiny_model("llama")), (), 512, timed=False)
    drafter = Tts(
        base=made(method),
        schedule=schedule,
        recipe=Recipe(learning_rate=1e-3),
        bandit=BanditSettings(window=2, min_rejected=0),
    )
    drafter.bind(loop.target)
    learned, plain = written_with_and_without(drafter, loop)
    assert learned == plain
    assert all(lane.num_updates for lane in drafter.lanes)


@pytest.mark.parametrize("method", METHODS)
def test_a_round_is_learned_and_forgotten(method: str) -> None:
    drafter = Tts(base=made(method), schedule="always", recipe=Recipe(learning_rate=5e-3))
    drafter.bind(Target(tiny_model("llama")))
    (lane,), network = drafter.lanes, drafter.base.network  # type: ignore[attr-defined]
    assert lane.learner is not None
    has_last = method == "dspark" or method == "peagle"
    assert lane.learner.parts == (("head", "full") if has_last else ("full",))
    before = [one.detach().clone() for one in network.parameters()]
    draft = started(drafter.base)
    logits = 4 * torch.randn(1, 1 + draft.width, VOCAB, generator=torch.Generator().manual_seed(1))
    example = example_of(lane.drafter, Outcome(committed=[[23]], pending=[24], draft=draft, logits=logits))
    found = []
    for _ in range(24):
        lane.learner.learn([example], "full")
        found.append(float(lane.learner.terms.target))
    assert found[-1] < 0.5 * found[0]
    lane.drafter.publish()
    assert not all(map(torch.equal, before, network.parameters()))
    again = lane.drafter.recall(draft, torch.zeros(1, dtype=torch.int64))
    assert torch.allclose(again()[0].log_softmax(-1), lane.learner.guesses([example])[0], atol=1e-5)
    drafter.reset(1)
    assert all(map(torch.equal, before, network.parameters()))


def test_a_head_that_scores_candidates_alone_is_refused() -> None:
    base = DFlash(kind="dflash2", head="random", num_layers=2, block_size=5)
    with pytest.raises(ConfigError, match="dflash2 head scores a few candidates"):
        Tts(base=base).bind(Target(tiny_model("llama")))
