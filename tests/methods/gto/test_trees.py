"""Trees of a training row are those of decoding, and the target's word on them that of single forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.drafting.draft import Draft
from harness.drafting.trees import DynamicTree, StaticTree, TreePolicy
from harness.runtime.cache import SlotCache
from harness.target.model import Target
from methods.shared.draft_vocabulary import DraftVocabulary
from methods.shared.eagle.growth import Growth
from methods.shared.eagle.steps import HeadSteps
from methods.shared.eagle.training import counting_rows
from methods.shared.gto import target_scores
from methods.shared.gto.head_trees import HeadTrees
from methods.shared.gto.target_scores import scored
from tests.methods.eagle.test_drafter import HEADS, model_of, random_weights
from tests.methods.eagle.test_training import DOCUMENTS, drafter_for, row_of

TREE = DynamicTree(total_token=12, depth=3, top_k=3)
KINDS = ["eagle", "eagle3", "eagle3, draft vocabulary", "eagle3, normed state recurs"]


def student_and_row(kind: str, tree: TreePolicy = TREE, family: str = "llama") -> tuple[HeadTrees, Any]:
    head, target = random_weights(HEADS[kind]), Target(model_of(family))
    architecture = "eagle" if kind == "eagle" else "eagle3"
    row = row_of(target, drafter_for(target, architecture).taps, DOCUMENTS, 3)
    vocabulary = DraftVocabulary(head, target)
    return HeadTrees(head=head, target=target, policy=tree, vocabulary=vocabulary, scale=None), row


def places_of(row: Any) -> torch.Tensor:
    return counting_rows(row, 0).nonzero()[:, 0]


def grown_in_a_round(student: HeadTrees, row: Any, place: int, tree: TreePolicy) -> Draft:
    """The tree that drafting grows from the pairs of a document up to this one."""
    known = (row.document == row.document[place]) & (torch.arange(len(row.ids)) <= place)
    features = torch.cat(row.taps, dim=-1)[known]
    growth = Growth(HeadSteps(student.target, student.head, SlotCache()))
    growth.begin(1)
    growth.feed(features[None], row.ids[known.nonzero()[:, 0] + 1][None], [len(features)])
    return tree.grow(growth)


@pytest.mark.parametrize("tree", [TREE, StaticTree(paths=((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)))])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_trees_and_chains_of_a_row_are_those_of_single_rounds(kind: str, tree: TreePolicy) -> None:
    student, row = student_and_row(kind, tree)
    places = places_of(row)
    assert len(places) > 8
    together, chains = student.trees(row, places), student.chains(row, places, 4)
    for number, place in enumerate(places.tolist()):
        alone = grown_in_a_round(student, row, place, tree)
        assert torch.equal(together.tokens[number], alone.tokens[0])
        assert torch.equal(together.parents[number], alone.parents[0])
        assert together.confidence is not None
        assert alone.confidence is not None
        torch.testing.assert_close(together.confidence[number], alone.confidence[0], atol=1e-4, rtol=1e-4)
        likeliest = grown_in_a_round(student, row, place, DynamicTree(total_token=5, depth=3, top_k=1))
        assert torch.equal(chains.tokens[number], likeliest.tokens[0])


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_of_a_path_are_the_confidence_of_its_last_node(kind: str) -> None:
    student, row = student_and_row(kind)
    places = places_of(row)
    with torch.no_grad():
        trees = student.trees(row, places)
    assert trees.confidence is not None
    num_compared = 0
    for number in range(len(places)):
        for node in range(trees.width):
            path = trees.tokens[number, trees.ancestors[number, node]]
            found = student.log_probs(row, places[number, None], path[None])
            assert found.requires_grad
            total = found.sum().exp().detach()
            torch.testing.assert_close(total, trees.confidence[number, node], atol=1e-4, rtol=1e-4)
            num_compared += 1
    assert num_compared > 80


@pytest.mark.parametrize("most", [8192, 40])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral"])
def test_the_targets_judgement_is_that_of_plain_forwards_over_every_path(
    family: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_scores, "_MOST_READ", most)
    student, row = student_and_row("eagle3", family=family)
    target, places = student.target, places_of(row)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        trees = student.trees(row, places)
    # A second draft per place that shares some nodes with the first, and has fewer of them.
    others = Draft(
        tokens=torch.where(torch.rand(trees.tokens.shape, generator=generator) < 0.5, trees.tokens, 1),
        parents=torch.arange(-1, trees.width - 1).expand_as(trees.parents),
        size=torch.full_like(trees.size, 3),
    )
    judged = scored(target, row, places, [trees, others])
    for draft, found in zip((trees, others), judged, strict=True):
        for number, place in enumerate(places.tolist()):
            inside = (row.document == row.document[place]) & (torch.arange(len(row.ids)) <= place + 1)
            text = row.ids[inside]
            for node in range(int(draft.size[number])):
                path = draft.tokens[number, draft.ancestors[number, node]]
                logits = target.trace(torch.cat([text, path])[None], ())[0][0, -2]
                probability = float(logits.softmax(-1)[path[-1]])
                assert float(found.probs[number, node]) == pytest.approx(probability, abs=1e-5)
                assert bool(found.likeliest[number, node]) == (int(logits.argmax()) == int(path[-1]))
        assert (found.probs[~draft.real] == 0).all()


def test_the_target_reads_shared_nodes_once_and_no_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    student, row = student_and_row("eagle3")
    target, places = student.target, places_of(row)[:4]
    sizes = []
    original = target.trace_visible

    def counted(ids: Any, *rest: Any) -> Any:
        sizes.append(len(ids))
        return original(ids, *rest)

    monkeypatch.setattr(target, "trace_visible", counted)
    with torch.no_grad():
        trees = student.trees(row, places)
    scored(target, row, places, [trees])
    scored(target, row, places, [trees, trees])
    inner = sum(len({*trees.parents[number].tolist()} - {-1}) for number in range(4))
    assert sizes == [int(places[-1]) + 2 + inner] * 2
