"""RankTree: within its budget, closed under parents, without equal siblings, and as wide as ranks ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.specblock.steps import Guesses
from methods.specblock.tree import RankTree

_VOCAB = 12


class Blocks:
    """A grower that guesses at random among few tokens, so that paths meet; counts what it is asked for."""

    context = 0.0

    def __init__(self, seed: int, num_rows: int = 2, slots: int = 3, sizes: Sequence[int] = ()) -> None:
        """sizes: numbers of blocks that it would rather be asked for."""
        self._generator, self._rows, self._slots = torch.Generator().manual_seed(seed), num_rows, slots
        self._sizes = sizes
        self.num_asked: list[int] = []

    def _guess(self, count: int, num_children: int) -> Guesses:
        shape = self._rows, count, self._slots
        logits = torch.randn(*shape, _VOCAB, generator=self._generator)
        best = logits.log_softmax(-1).topk(num_children, dim=-1)
        return Guesses(best.indices, best.values, torch.randint(0, 4, shape, generator=self._generator))

    def first(self, num_children: int) -> Guesses:
        return self._guess(1, num_children)

    def size_for(self, num_blocks: int) -> int:
        return next((size for size in self._sizes if size >= num_blocks), num_blocks)

    def blocks(self, origins: Tensor, slots: Tensor, tokens: Tensor, num_children: int) -> Guesses:
        self.num_asked.append(tokens.shape[1])
        return self._guess(tokens.shape[1], num_children)


def grown(seed: int, **options: Any) -> tuple[Any, Blocks]:
    grower: Any = Blocks(seed)
    usual: dict[str, Any] = {"budget": 20, "first_width": 6, "widths": (2, 3, 5, 0)}
    return RankTree(**{**usual, **options}).grow(grower), grower


@pytest.mark.parametrize(
    "options", [{}, {"cut": True}, {"merge_first": True}, {"max_blocks": 3}, {"budget": 3}]
)
@pytest.mark.parametrize("seed", range(4))
def test_a_tree_is_closed_within_its_budget_and_has_no_equal_siblings(
    seed: int, options: dict[str, Any]
) -> None:
    draft, grower = grown(seed, **options)
    most = options.get("budget", 20)
    for row, size in enumerate(draft.size.tolist()):
        assert 0 < size <= most
        parents, tokens = draft.parents[row, :size].tolist(), draft.tokens[row, :size].tolist()
        assert all(parent < place for place, parent in enumerate(parents))
        assert len(set(zip(parents, tokens, strict=True))) == size
        scores = draft.confidence[row, :size].tolist()
        assert all(
            score <= scores[parent] for score, parent in zip(scores, parents, strict=True) if parent >= 0
        )
        if options.get("merge_first"):
            assert size == most
    assert len(grower.num_asked) <= options.get("max_blocks", 2) - 1
    assert all(count <= 40 for count in grower.num_asked)


class SameEveryTime(Blocks):
    """Guesses that follow from the token and the place that a block starts from."""

    def blocks(self, origins: Tensor, slots: Tensor, tokens: Tensor, num_children: int) -> Guesses:
        self.num_asked.append(tokens.shape[1])
        parts = []
        for seed in (origins * 1000 + slots * 100 + tokens).flatten().tolist():
            self._generator.manual_seed(seed)
            self._rows = 1
            parts.append(self._guess(1, num_children))
        shape = *tokens.shape, self._slots
        return Guesses(
            *(torch.cat(part).reshape(*shape, *part[0].shape[3:]) for part in zip(*parts, strict=True))
        )


@pytest.mark.parametrize("merge_first", [False, True])
@pytest.mark.parametrize("max_blocks", [2, 3])
@pytest.mark.parametrize("budget", [1, 2, 5, 9])
@pytest.mark.parametrize("sizes", [(), (4, 8)])
@pytest.mark.parametrize("seed", range(3))
def test_neither_blocks_that_are_not_started_nor_those_beyond_the_wanted_ones_change_a_draft(
    seed: int, sizes: tuple[int, ...], budget: int, max_blocks: int, merge_first: bool
) -> None:
    options: Any = {"first_width": 6, "widths": (2, 3, 5, 0), "merge_first": merge_first}
    options["max_blocks"] = max_blocks
    few: Any = SameEveryTime(seed, num_rows=1, sizes=sizes)
    every: Any = SameEveryTime(seed, num_rows=1)
    tree = RankTree(budget=budget, **options)
    draft = tree.grow(few)
    expected = tree.pruned(RankTree(budget=500, **options).candidates(every))
    assert draft.tokens.tolist() == expected.tokens.tolist()
    assert draft.parents.tolist() == expected.parents.tolist()
    assert sum(few.num_asked) < sum(every.num_asked) or merge_first
    assert sum(few.num_asked) <= tree.num_expanded


def test_one_block_is_a_chain_with_as_many_siblings_as_its_classes_ask_for() -> None:
    tokens = torch.arange(12).view(1, 1, 3, 4)
    log_probs = torch.tensor([0.5, 0.2, 0.1, 0.05]).log().expand(1, 1, 3, 4)

    class Fixed(Blocks):
        def first(self, num_children: int) -> Guesses:
            return Guesses(
                tokens[..., :num_children], log_probs[..., :num_children], torch.tensor([[[0, 2, 1]]])
            )

    grower: Any = Fixed(0)
    draft = RankTree(max_blocks=1, first_width=3, widths=(1, 2, 4, 0)).grow(grower)
    depths = [draft.depths[0, : int(draft.size[0])].tolist().count(depth) for depth in (1, 2, 3)]
    assert depths == [3, 4, 2]
    # After a slot that gives up, the chain goes on without siblings.
    gave_up = RankTree(max_blocks=1, first_width=3, widths=(1, 2, 0, 0)).grow(grower)
    depths = [gave_up.depths[0, : int(gave_up.size[0])].tolist().count(depth) for depth in (1, 2, 3)]
    assert depths == [3, 1, 1]


def test_probable_tokens_need_fewer_siblings() -> None:
    tokens = torch.arange(30).view(1, 1, 3, 10)
    probs = torch.tensor([0.96, *[0.001] * 9])

    class Sure(Blocks):
        def first(self, num_children: int) -> Guesses:
            return Guesses(tokens, probs.log().expand(1, 1, 3, 10), torch.full((1, 1, 3), 2))

    grower: Any = Sure(0)
    draft = RankTree(max_blocks=1, first_width=10, widths=(2, 4, 10, 0), cut=True).grow(grower)
    depths = [draft.depths[0, : int(draft.size[0])].tolist().count(depth) for depth in (1, 2, 3)]
    assert depths == [3, 2, 2]
