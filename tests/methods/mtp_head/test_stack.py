"""Heads that take turns: each level is its own head's, over true rows of that head, and outputs stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.decoding.acceptance import Coupled
from harness.drafting.drafter import HiddenTap, Outcome
from harness.runtime.cache import SlotCache
from methods.mtp_head import MtpHead
from methods.shared.eagle.growth import Growth
from methods.shared.eagle.steps import HeadSteps
from methods.vanilla import Vanilla
from tests.methods.mtp_head.heads import NUM_LAYERS, bound, save, target, written
from tests.methods.mtp_head.test_drafter import GREEDY, SAMPLED, made

IDS = torch.tensor([[5, 9, 14, 22, 8, 30, 41, 17, 12], [7, 7, 50, 3, 21, 33, 10, 11, 6]])


@pytest.mark.parametrize("family", ["mimo", "glm", "deepseek"])
def test_heads_are_read_in_the_order_of_their_numbers(family: str, tmp_path: Path) -> None:
    given = bound(family, num_heads=3, hidden_first=family == "mimo")
    tensors: dict[str, Tensor] = {}
    for number in (2, 0, 1):
        own = written(given.networks[number].state_dict(), family)
        old, new = (f"mtp_layers.{0}.", f"mtp_layers.{number}.")
        if family != "mimo":
            old, new = f"model.layers.{NUM_LAYERS}.", f"model.layers.{NUM_LAYERS + number}."
        tensors |= {name.replace(old, new): tensor for name, tensor in own.items()}
    read = bound(family, save(tmp_path, tensors, family))
    assert len(read.networks) == 3
    for one, other in zip(read.networks, given.networks, strict=True):
        assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def recomputed(drafter: MtpHead, states: Tensor, tokens: list[int], drafted: list[int]) -> list[Tensor]:
    """Logits of each level behind `tokens`, from plain passes of every head over all of its rows.

    states [n, H]: the target's, of all tokens but the last, which is pending.
    """
    found, rows, ids = [], states[None], torch.tensor([tokens[1:]])
    for level, network in enumerate(drafter.networks):
        growth = Growth(HeadSteps(target(FAMILY), network, SlotCache()))
        growth.begin(1)
        outputs = growth.feed(rows, ids, [ids.shape[1]])
        found.append(growth._steps.score(outputs[0, -1]))
        # The next head reads these states, one token further.
        rows, ids = outputs, torch.cat([ids[:, 1:], torch.tensor([[drafted[level]]])], dim=1)
    return found


FAMILY = "mimo"


@torch.no_grad()
def test_two_heads_guess_what_full_passes_over_true_rows_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of different numbers of tokens, a sequence that another one replaces, and one that ends."""
    drafter = bound(FAMILY, num_heads=2, tree={"total_token": 3, "depth": 1, "top_k": 1})
    scored: list[Tensor] = []
    original = HeadSteps.best

    def best(self: HeadSteps, states: Tensor, count: int) -> Any:
        scored.append(self.score(states)[:, 0])
        return original(self, states, count)

    monkeypatch.setattr(HeadSteps, "best", best)
    _, (states,) = target(FAMILY).trace(IDS, (HiddenTap(-1, "normed"),))
    drafter.reset(2)
    done, draft = [0, 0], None

    def observed(counts: tuple[int, ...], rows: list[int] | None = None) -> None:
        here = list(range(2)) if rows is None else rows
        committed = [
            IDS[b, done[b] : done[b] + count].tolist() for b, count in zip(here, counts, strict=True)
        ]
        pending = [int(IDS[b, done[b] + count]) for b, count in zip(here, counts, strict=True)]
        taps = states.new_full((len(here), max(counts), 32), 1e6)
        for place, (b, count) in enumerate(zip(here, counts, strict=True)):
            taps[place, :count] = states[b, done[b] : done[b] + count]
            done[b] += count
        drafter.observe(
            Outcome(
                committed=committed, pending=pending, taps=[taps], draft=None if rows else draft, rows=rows
            )
        )

    for counts in ((3, 1), (1, 2), (2, 1)):
        observed(counts)
        scored.clear()
        draft = drafter.propose([9, 9])
        for b in range(2):
            drafted = draft.tokens[b].tolist()
            wanted = recomputed(drafter, states[b, : done[b]], IDS[b, : done[b] + 1].tolist(), drafted)
            for level, logits in enumerate(wanted):
                torch.testing.assert_close(scored[level][b], logits, atol=1e-4, rtol=1e-4)
    observed((1, 1))
    done[1] = 0
    observed((4,), rows=[1])
    scored.clear()
    draft = drafter.propose([9, 9])
    drafter.keep([1])
    for b in range(2):
        wanted = recomputed(
            drafter, states[b, : done[b]], IDS[b, : done[b] + 1].tolist(), draft.tokens[b].tolist()
        )
        torch.testing.assert_close(scored[1][b], wanted[1], atol=1e-4, rtol=1e-4)
    assert [head.cache.lengths for head in drafter._stack.heads] == [[3]]  # type: ignore[union-attr]


@pytest.mark.parametrize("num_heads", [2, 3])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=lambda params: params.name)
def test_output_is_vanillas_alone_and_in_a_batch(num_heads: int, params: Any) -> None:
    expected = [one.output_ids for one in made("glm", Vanilla(), params, 1, Coupled())]
    for tree, batch in (
        ({"total_token": 6, "depth": 4, "top_k": 1}, 1),
        ({"total_token": 9, "depth": 3, "top_k": 2}, 2),
    ):
        drafter = bound("glm", num_heads=num_heads, tree=tree)
        drafted = made("glm", drafter, params, batch, Coupled())
        assert [one.output_ids for one in drafted] == expected
        assert max(max(one.depth) for one in drafted) >= 3
