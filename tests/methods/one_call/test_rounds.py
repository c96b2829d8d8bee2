"""Rounds of drafters with one or two calls: how many calls, and what their caches hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.config import ConfigError
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import Outcome
from harness.drafting.trees import DynamicTree
from harness.target.model import Target
from methods.fasteagle.network import CascadeNetwork
from methods.fasteagle.tree import BackboneTree
from methods.specblock.network import BlockNetwork
from methods.vanilla import Vanilla
from tests.methods.one_call.drafters import METHODS, NUM_GUESSES, bound, made
from tests.support.targets import VOCAB, tiny_model

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1], [8, 2, 8, 1, 8]]
GREEDY = DecodingParams(name="greedy", max_new_tokens=12)


def generated(drafter: Any, target: Target) -> list[Any]:
    loop = DecodingLoop(target, (), 512, timed=False)
    asked = [Request(prompt=prompt, key=number) for number, prompt in enumerate(PROMPTS)]
    return loop.generate(asked, drafter, GREEDY, Coupled())


@pytest.mark.parametrize(("method", "size"), [("fasteagle", 1), ("fasteagle", 5), ("specblock", 3)])
def test_a_round_takes_one_call_or_as_many_as_blocks(
    method: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = CascadeNetwork if method == "fasteagle" else BlockNetwork
    calls, per_round, original = [0], [], kind.forward

    def forward(self: Any, *args: Any) -> Any:
        calls[0] += 1
        return original(self, *args)

    monkeypatch.setattr(kind, "forward", forward)
    drafter = bound(method, **{"num_levels" if method == "fasteagle" else "num_slots": size})
    propose = drafter.propose

    def counted(room: Any) -> Any:
        before = calls[0]
        draft = propose(room)
        per_round.append(calls[0] - before)
        return draft

    monkeypatch.setattr(drafter, "propose", counted)
    generated(drafter, drafter._target)
    assert len(per_round) > 3
    assert max(per_round) == (1 if method == "fasteagle" else drafter.tree.max_blocks)


def fed(drafter: Any, sizes: list[int], features: torch.Tensor, tokens: torch.Tensor) -> Any:
    """A round after rows were fed in pieces of these sizes."""
    drafter.reset(1)
    start = 0
    for size in sizes:
        growth = drafter.new_growth()
        growth.feed(features[:, start : start + size], tokens[:, start : start + size], [size])
        start += size
    return growth


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_many_rows_at_once_leave_the_cache_of_one_by_one(method: str) -> None:
    drafter = bound(method)
    features = torch.randn(1, 9, drafter.feature_shape[0], generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(2, 11)[None]
    whole = fed(drafter, [9], features, tokens)
    draft = drafter.tree.grow(whole)
    for sizes in ([1] * 9, [4, 1, 4]):
        pieces = fed(drafter, sizes, features, tokens)
        torch.testing.assert_close(pieces.outputs, whole.outputs[:, :1], rtol=1e-4, atol=1e-4)
        assert int(pieces.base[0]) == 8
        again = drafter.tree.grow(pieces)
        assert torch.equal(again.tokens, draft.tokens)
        assert torch.equal(again.parents, draft.parents)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", ["aligned", "released"])
def test_output_is_vanillas_whatever_rows_are_fed(method: str, rows: str) -> None:
    if method == "fasteagle" and rows == "released":
        pytest.skip("there is no release of FastEagle")
    target = Target(tiny_model("llama"))
    drafter = bound(method, target, **({"rows": rows} if method == "specblock" else {}))
    vanilla = Vanilla()
    vanilla.bind(target)
    expected = [one.output_ids for one in generated(vanilla, target)]
    assert [one.output_ids for one in generated(drafter, target)] == expected


@torch.no_grad()
def test_released_rows_of_a_batch_are_those_of_single_sequences() -> None:
    together, alone = bound("specblock", rows="released"), bound("specblock", rows="released")
    rounds = [([8, 3], [5, 6]), ([1, 3], [7, 8]), ([2, 1], [9, 1]), ([1, 1], [2, 3])]
    width = together.feature_shape[0] // 3
    generator = torch.Generator().manual_seed(2)
    given = [
        [torch.randn(2, max(counts), width, generator=generator) for _ in range(3)] for counts, _ in rounds
    ]

    def drafts(drafter: Any, wanted: list[int]) -> list[Any]:
        drafter.reset(len(wanted))
        found = []
        for (counts, pending), taps in zip(rounds, given, strict=True):
            committed = [list(range(4, 4 + counts[row])) for row in wanted]
            some = [tap[wanted, : max(map(len, committed))] for tap in taps]
            drafter.observe(Outcome(committed=committed, pending=[pending[row] for row in wanted], taps=some))
            draft = drafter.propose([9] * len(wanted))
            found.append(
                [(draft.tokens[row, :size], draft.parents[row, :size]) for row, size in enumerate(draft.size)]
            )
        return found

    both = drafts(together, [0, 1])
    for row in (0, 1):
        for one, several in zip(drafts(alone, [row]), both, strict=True):
            assert torch.equal(one[0][0], several[row][0])
            assert torch.equal(one[0][1], several[row][1])


@torch.no_grad()
def test_dynamic_trees_of_a_cascade_end_with_its_levels() -> None:
    drafter = bound("fasteagle", tree=DynamicTree(total_token=10, depth=4, top_k=2))
    features = torch.randn(1, 2, drafter.feature_shape[0], generator=torch.Generator().manual_seed(1))
    draft = drafter.tree.grow(fed(drafter, [2], features, torch.tensor([[4, 5]])))
    assert draft.confidence is not None
    assert bool((draft.confidence[0, draft.depths[0] > NUM_GUESSES] == 0).all())
    assert bool((draft.confidence[0, draft.depths[0] <= NUM_GUESSES] > 0).any())


@pytest.mark.parametrize("method", METHODS)
def test_a_tree_or_head_that_does_not_fit_is_refused(method: str) -> None:
    target = Target(tiny_model("llama"))
    with pytest.raises(ConfigError, match=r"^head: none is known"):
        made(method, head=None).bind(target)
    with pytest.raises(ConfigError, match="but the head's vocabulary has 12"):
        made(method, draft_vocab_size=12, tree=DynamicTree(total_token=14, depth=1, top_k=13)).bind(target)
    with pytest.raises(ConfigError, match=f"at most the target's, {VOCAB}"):
        made(method, draft_vocab_size=VOCAB + 1).bind(target)
    other = BackboneTree(level_widths=(2,)) if method == "specblock" else bound("specblock").tree
    drafter = bound(method, tree=other)
    with pytest.raises(ConfigError, match="needs a network that guesses"):
        drafter.tree.grow(drafter.new_growth())


@torch.no_grad()
def test_released_rows_that_wait_for_a_draft_are_fed_round_by_round() -> None:
    """A router may not ask for a draft after every round."""
    generator = torch.Generator().manual_seed(4)
    drafts = []
    width = bound("specblock").feature_shape[0] // 3
    given = [[torch.randn(1, count, width, generator=generator) for _ in range(3)] for count in (5, 2, 1, 3)]
    for asks in (True, False):
        drafter = bound("specblock", rows="released")
        drafter.reset(1)
        for number, taps in enumerate(given):
            committed = [list(range(4, 4 + taps[0].shape[1]))]
            drafter.observe(Outcome(committed=committed, pending=[6 + number], taps=taps))
            if asks or number == len(given) - 1:
                draft = drafter.propose([9])
        drafts.append(draft)
    assert torch.equal(drafts[0].tokens, drafts[1].tokens)
    assert torch.equal(drafts[0].parents, drafts[1].parents)
