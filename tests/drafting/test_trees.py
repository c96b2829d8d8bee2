"""Tree policies against a slow reading of the papers, on guesses that are made up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.config import ConfigError, build
from harness.drafting.draft import Draft
from harness.drafting.trees import DynamicTree, Pool, Proposals, StaticTree

VOCAB = 40
SHAPES = [(8, 3, 4), (24, 4, 6), (60, 7, 10), (2, 0, 1), (6, 4, 1), (4, 5, 1), (11, 0, 10), (60, 5, 10)]

Path = tuple[int, ...]


class MadeUp:
    """A grower whose guesses depend on the path alone, and that counts its calls.

    levels: logits are rounded to 1 / levels, so that scores tie.
    """

    context = 0.0

    def __init__(self, seeds: list[int], levels: int | None = None, sharp: float = 2.0) -> None:
        self.seeds, self.levels, self.sharp = seeds, levels, sharp
        self.paths: list[list[Path]] = [[] for _ in seeds]
        self.num_calls = 0

    def distribution(self, row: int, path: Path) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seeds[row], path)) % (1 << 31))
        logits = torch.randn(VOCAB, generator=generator) * self.sharp
        if self.levels:
            logits = (logits * self.levels).round() / self.levels
        return logits.log_softmax(-1)

    def best(self, row: int, path: Path, count: int) -> Proposals:
        distribution = self.distribution(row, path)
        order = distribution.sort(descending=True, stable=True).indices[:count]
        return Proposals(order, distribution[order])

    def start(self, num_children: int) -> Proposals:
        self.num_calls += 1
        found = [self.best(row, (), num_children) for row in range(len(self.seeds))]
        return Proposals(torch.stack([f.tokens for f in found]), torch.stack([f.log_probs for f in found]))

    def expand(self, tokens: Tensor, parents: Tensor, num_children: int) -> Proposals:
        self.num_calls += 1
        all_tokens, all_probs = [], []
        for row, (some, above) in enumerate(zip(tokens.tolist(), parents.tolist(), strict=True)):
            known = self.paths[row]
            fresh = [(*(known[p] if p >= 0 else ()), token) for token, p in zip(some, above, strict=True)]
            known += fresh
            found = [self.best(row, path, num_children) for path in fresh]
            all_tokens.append(torch.stack([f.tokens for f in found]))
            all_probs.append(torch.stack([f.log_probs for f in found]))
        return Proposals(torch.stack(all_tokens), torch.stack(all_probs))


def expected(grower: MadeUp, row: int, total_token: int, depth: int, top_k: int) -> list[Path]:
    """The paths of the nodes, in order: expansion level by level, then the best of all candidates."""
    candidates: list[tuple[float, Path]] = []
    beam: list[tuple[float, Path]] = [(0.0, ())]
    for _ in range(depth + 1):
        level = []
        for score, path in beam:
            found = grower.best(row, path, top_k)
            for token, log_prob in zip(found.tokens.tolist(), found.log_probs, strict=True):
                level.append((float(torch.tensor(score) + log_prob), (*path, token)))
        candidates += level
        beam = sorted(level, key=lambda one: -one[0])[:top_k]
    ranked = sorted(range(len(candidates)), key=lambda i: (-candidates[i][0], i))[: total_token - 1]
    return [candidates[i][1] for i in sorted(ranked)]


def paths_of(draft: Draft, row: int) -> list[Path]:
    paths: list[Path] = []
    for token, parent in zip(draft.tokens[row].tolist(), draft.parents[row].tolist(), strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths[: int(draft.size[row])]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("levels", [None, 2], ids=["distinct", "with ties"])
def test_the_dynamic_tree_is_the_papers(shape: tuple[int, int, int], levels: int | None) -> None:
    total_token, depth, top_k = shape
    tree = DynamicTree(total_token=total_token, depth=depth, top_k=top_k)
    grower = MadeUp([1, 2, 3], levels)
    draft = tree.grow(grower)
    draft.check(VOCAB)
    assert grower.num_calls == depth + 1
    assert draft.width == tree.num_nodes == total_token - 1
    for row in range(3):
        assert paths_of(draft, row) == expected(grower, row, *shape)
    assert int(draft.depths.max()) <= depth + 1


@pytest.mark.parametrize("levels", [1, 3])
def test_a_node_is_never_drafted_without_its_parent(levels: int) -> None:
    for sharp in (0.1, 3.0, 300.0, 3000.0):
        DynamicTree(total_token=24, depth=4, top_k=6).grow(MadeUp(list(range(40)), levels, sharp)).check(
            VOCAB
        )


def test_a_child_that_outscores_its_parent_is_an_assertion() -> None:
    pool = Pool(
        tokens=torch.arange(6)[None],
        scores=torch.tensor([[-3.0, -3, -9, -9, -1, -1]]),
        parents=torch.tensor([[-1, -1, 0, 0, 1, 1]]),
    )
    with pytest.raises(RuntimeError, match="without its parent"):
        DynamicTree(total_token=3, depth=1, top_k=2).rerank(pool)


def test_one_wide_is_a_chain_of_the_likeliest() -> None:
    grower = MadeUp([5])
    draft = DynamicTree(total_token=6, depth=4, top_k=1).grow(grower)
    path: Path = ()
    for _ in range(5):
        path = (*path, int(grower.best(0, path, 1).tokens[0]))
    assert draft.is_chain
    assert draft.tokens[0].tolist() == list(path)


def test_a_sequence_gets_in_a_batch_what_it_gets_alone() -> None:
    for tree in (DynamicTree(total_token=24, depth=4, top_k=6), StaticTree()):
        together = tree.grow(MadeUp([1, 2, 3]))
        for row, seed in enumerate([1, 2, 3]):
            assert paths_of(tree.grow(MadeUp([seed])), 0) == paths_of(together, row)


def test_the_static_tree_has_the_official_shape_and_five_calls() -> None:
    tree, grower = StaticTree(), MadeUp([1, 2])
    draft = tree.grow(grower)
    draft.check(VOCAB)
    assert grower.num_calls == 5
    assert draft.depths[0].bincount()[1:].tolist() == [4, 8, 8, 3, 2]
    for row in range(2):
        wanted = set()
        for ranks in tree.paths:
            path: Path = ()
            for rank in ranks:
                path = (*path, int(grower.best(row, path, rank + 1).tokens[rank]))
            wanted.add(path)
        assert set(paths_of(draft, row)) == wanted


@pytest.mark.parametrize("paths", [[], [[]], [[0, 0]], [[0], [0]], [[-1]]])
def test_impossible_static_trees_are_refused(paths: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="paths"):
        build({"_target_": "harness.drafting.trees.StaticTree", "paths": paths}, "tree")


def test_more_nodes_than_candidates_are_refused() -> None:
    with pytest.raises(ConfigError, match="lower total_token"):
        build(
            {"_target_": "harness.drafting.trees.DynamicTree", "total_token": 60, "depth": 1, "top_k": 4},
            "tree",
        )


def test_confidence_is_the_probability_of_the_path() -> None:
    grower = MadeUp([3])
    for tree in (DynamicTree(total_token=8, depth=3, top_k=4), StaticTree()):
        draft = tree.grow(grower)
        assert draft.confidence is not None
        for path, confidence in zip(paths_of(draft, 0), draft.confidence[0].tolist(), strict=True):
            steps = [grower.distribution(0, path[:i])[token] for i, token in enumerate(path)]
            assert confidence == pytest.approx(float(torch.stack(steps).sum().exp()), rel=1e-4)
        grower = MadeUp([3])
