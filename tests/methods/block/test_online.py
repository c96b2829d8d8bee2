"""Block drafters and P-EAGLE, trained on line: what is computed again is what was drafted from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.config import ConfigError
from harness.drafting.online import OnlineDrafter
from harness.target.model import Target
from methods.ddtree import DDTree
from methods.dflash import DFlash
from methods.peagle import PEagle
from methods.tts import Tts
from tests.methods.block.heads import PARTS, network_of
from tests.support.online import check_learning, check_output, slope, started
from tests.support.targets import tiny_model

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
    check_output(made(method), schedule)


@pytest.mark.parametrize("method", METHODS)
def test_a_round_is_learned_and_forgotten(method: str) -> None:
    check_learning(made(method), 5e-3, num_updates=24)


@pytest.mark.parametrize("method", METHODS)
def test_the_output_can_be_trained_alone_where_there_is_a_last_part(method: str) -> None:
    drafter = Tts(base=made(method))
    drafter.bind(Target(tiny_model("llama")))
    assert drafter.lanes[0].learner is not None
    has_last = method in ("dspark", "peagle")
    assert drafter.lanes[0].learner.parts == (("head", "full") if has_last else ("full",))


def test_a_head_that_scores_candidates_alone_is_refused() -> None:
    base = DFlash(kind="dflash2", head="random", num_layers=2, block_size=5)
    with pytest.raises(ConfigError, match="dflash2 head scores a few candidates"):
        Tts(base=base).bind(Target(tiny_model("llama")))
