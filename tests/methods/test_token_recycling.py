"""Token Recycling: merged paths, tables of their own or one for all, and what the prompt teaches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from harness.config import ConfigError
from harness.drafting.draft import Draft
from harness.drafting.drafter import Outcome, TargetView
from methods.token_recycling import TokenRecycling

Paths = list[tuple[int, ...]]


def bound(vocab_size: int, **settings: Any) -> TokenRecycling:
    drafter = TokenRecycling(**settings)
    view = SimpleNamespace(device=torch.device("cpu"), vocab_size=vocab_size)
    drafter.bind(cast(TargetView, view))
    drafter.reset(1)
    return drafter


def paths_of(tokens: list[int], parents: list[int]) -> Paths:
    """The tokens from the root down to each node; parents as indices, -1 for the root."""
    found: Paths = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def drafted(draft: Draft) -> Paths:
    size = int(draft.size[0])
    return paths_of(draft.tokens[0, :size].tolist(), draft.parents[0, :size].tolist())


def test_an_unseen_token_drafts_each_path_once_and_a_legal_tree() -> None:
    drafter = bound(16)
    drafter.observe(Outcome(committed=[[1, 2]], pending=[3]))
    draft = drafter.propose([10])
    draft.check(16)
    assert drafted(draft) == [(0,) * depth for depth in range(1, 7)]


def test_sequences_have_tables_of_their_own_and_a_new_one_begins_with_nothing() -> None:
    drafter = bound(32, children=((2,),), memory="call")
    drafter.reset(2)
    drafter.observe(Outcome(committed=[[1], [1]], pending=[5, 5]))
    logits = torch.zeros(2, 2, 32)
    logits[0, 0, [9, 8]], logits[1, 0, [7, 6]] = torch.tensor([2.0, 1.0]), torch.tensor([2.0, 1.0])
    # Both are back at token 5, whose successors differ.
    drafter.observe(
        Outcome(committed=[[5], [5]], pending=[5, 5], draft=drafter.propose([4, 4]), logits=logits)
    )
    assert drafter.propose([4, 4]).tokens.tolist() == [[9, 8], [7, 6]]
    drafter.observe(Outcome(committed=[[1]], pending=[5], rows=[0]))
    assert drafter.propose([4, 4]).size.tolist() == [1, 2]
    drafter.keep([1])
    assert drafter.propose([4]).tokens.tolist() == [[7, 6]]


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"top_k": 4}, "top_k=4"), ({"children": ((2,), (1,))}, "level 2"), ({"children": ((0,),)}, "level 1")],
)
def test_a_tree_that_does_not_fit_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=told):
        TokenRecycling(**settings)


def test_a_vocabulary_smaller_than_k_is_refused() -> None:
    with pytest.raises(ConfigError, match="only 4 tokens"):
        bound(4)


def test_sequences_of_a_wider_scope_share_one_table_and_the_later_row_wins() -> None:
    drafter = bound(32, children=((2,),), memory="process")
    drafter.reset(2)
    drafter.observe(Outcome(committed=[[1], [1]], pending=[5, 5]))
    logits = torch.zeros(2, 2, 32)
    logits[0, 0, [9, 8]], logits[1, 0, [7, 6]] = torch.tensor([2.0, 1.0]), torch.tensor([2.0, 1.0])
    draft = drafter.propose([4, 4])
    drafter.observe(Outcome(committed=[[5], [5]], pending=[5, 5], draft=draft, logits=logits))
    assert drafter.propose([4, 4]).tokens.tolist() == [[7, 6], [7, 6]]
    drafter.new_call(keep_memory=True)
    drafter.reset(1)
    drafter.observe(Outcome(committed=[[1]], pending=[5]))
    assert drafter.propose([4]).tokens.tolist() == [[7, 6]]
    drafter.new_call(keep_memory=False)
    drafter.reset(1)
    drafter.observe(Outcome(committed=[[1]], pending=[5]))
    assert drafter.propose([4]).tokens.tolist() == [[0]]


def test_a_tree_on_a_device_is_that_of_the_host_behind_no_more_than_padding() -> None:
    draw = torch.Generator().manual_seed(0)
    drafter = bound(24)
    drafter.reset(3)
    for seen in (0.2, 0.6, 1.0):
        known = torch.rand(3, 25, 1, generator=draw) < seen
        drafter._table = torch.rand(3, 25, 24, generator=draw).argsort(-1)[..., :8] * known
        drafter._pending = torch.randint(0, 24, (3,), generator=draw)
        host, device = drafter.propose([9] * 3), drafter._propose_on_device()
        assert torch.equal(host.padded(device.width).size, device.size)
        assert device.width == 80
        device.check(24)
        for row, size in enumerate(host.size.tolist()):
            assert torch.equal(host.tokens[row, :size], device.tokens[row, :size])
            assert torch.equal(host.parents[row, :size], device.parents[row, :size])
