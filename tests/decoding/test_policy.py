"""A policy that shortens drafts changes what is verified and nothing that is emitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.config import ConfigError, build, configurable
from harness.decoding.acceptance import Coupled, Rejection
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft, Riders, TreeShape
from harness.drafting.draft_policy import DraftPolicy, KeepAll, shorten
from methods.ngram import NGram
from methods.vanilla import Vanilla
from tests.support.targets import VOCAB, RandomTrees, engine, oracle, requests

GREEDY = DecodingParams(name="greedy", max_new_tokens=30)
SAMPLED = DecodingParams(name="sampled", temperature=1.0, max_new_tokens=30, ignore_end_token=True)


@configurable
class Confident(DraftPolicy):
    """Keeps the nodes that the drafter trusts."""

    threshold: float = 0.5

    def select(self, shape: TreeShape) -> Tensor:
        if shape.confidence is None:
            raise ConfigError("policy: decides by confidence, which the method does not state")
        return shape.confidence >= self.threshold


@configurable
class FirstNodes(DraftPolicy):
    """Keeps the first few nodes of every tree."""

    count: int = 2

    def select(self, shape: TreeShape) -> Tensor:
        return torch.arange(shape.width).expand_as(shape.parents) < self.count


@configurable
class Trusting(RandomTrees):
    """Random trees with random confidences."""

    def propose(self, room: Sequence[int]) -> Draft:
        draft = super().propose(room)
        return replace(draft, confidence=torch.rand(draft.tokens.shape, generator=self._generator))


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=lambda params: params.name)
@pytest.mark.parametrize(
    "policy",
    [Confident(), Confident(threshold=2.0), FirstNodes(), FirstNodes(count=0)],
    ids=["confident", "never", "two", "none"],
)
def test_shortened_drafts_emit_what_vanilla_emits(params: DecodingParams, policy: DraftPolicy) -> None:
    loop, plain = engine(), Vanilla()
    plain.bind(loop.target)
    expected = [loop.generate([one], plain, params, Coupled())[0].output_ids for one in requests()]
    whole, cut = (Trusting(oracle=oracle(requests(), expected), policy=p) for p in (KeepAll(), policy))
    sizes = []
    for drafter in (whole, cut):
        drafter.bind(loop.target)
        made = loop.generate(requests(), drafter, params, Coupled())
        assert [one.output_ids for one in made] == expected
        for one in made:
            for draft, row in one.drafts:
                draft.check(VOCAB)
                assert row < len(draft.size)
        sizes.append(sum(sum(one.drafted) for one in made) / sum(len(one.drafted) for one in made))
    assert sizes[1] < sizes[0], "the policy has cut nothing"
    if params is GREEDY:
        made = loop.generate(requests(), cut, params, Rejection())
        assert [one.output_ids for one in made] == expected


def test_a_policy_is_given_no_token() -> None:
    """Nothing that it is shown changes when the tokens do."""
    parents, size = torch.tensor([[-1, 0, 0]]), torch.tensor([3])
    draft = Draft(tokens=torch.tensor([[4, 5, 6]]), parents=parents, size=size)
    assert {field.name for field in fields(draft.shape)} == {
        "parents",
        "size",
        "confidence",
        "is_chain",
        "num_levels",
    }
    assert not hasattr(draft.shape, "tokens")
    assert not hasattr(draft.shape, "probs")


@st.composite
def trees(draw: st.DrawFn) -> tuple[Draft, Tensor]:
    """A draft of two sequences with a rider each, and the nodes that somebody wants to keep."""
    n = draw(st.integers(0, 7))
    sizes = [draw(st.integers(0, n)) for _ in range(2)]
    parents = [
        [draw(st.integers(-1, node - 1)) if node < size else -1 for node in range(n)] for size in sizes
    ]
    draft = Draft(
        tokens=torch.arange(n).expand(2, n),
        parents=torch.tensor(parents, dtype=torch.int64).reshape(2, n),
        size=torch.tensor(sizes),
        confidence=torch.rand(2, n),
        riders=Riders(
            tokens=torch.zeros(2, 1, dtype=torch.int64),
            offsets=torch.zeros(2, 1, dtype=torch.int64),
            visible=torch.ones(2, 1, 2 + n, dtype=torch.bool),
        ),
    )
    return draft, torch.tensor([[draw(st.booleans()) for _ in range(n)] for _ in range(2)]).reshape(
        2, n
    ).bool()


@settings(max_examples=60, deadline=None)
@given(trees())
def test_what_stays_is_the_tree_of_the_nodes_whose_ancestors_all_stay(example: tuple[Draft, Tensor]) -> None:
    draft, keep = example
    cut = draft.restricted(keep)
    cut.check(VOCAB)
    for row in range(2):
        stays: list[int] = []
        for node in range(int(draft.size[row])):
            parent = int(draft.parents[row, node])
            if keep[row, node] and (parent < 0 or parent in stays):
                stays.append(node)
        assert cut.tokens[row, : int(cut.size[row])].tolist() == stays
        above = [int(draft.parents[row, node]) for node in stays]
        found = cut.parents[row, : len(stays)].tolist()
        assert [stays[parent] if parent >= 0 else -1 for parent in found] == above
        assert cut.riders is not None
        seen = cut.riders.visible[row, 0].tolist()
        assert seen == [True] * (1 + len(stays)) + [False] * (cut.width - len(stays)) + [True]


def test_a_chain_stays_a_chain() -> None:
    chain = Draft.chain(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([3, 3]))
    cut = chain.restricted(torch.tensor([[True, False, True], [True, True, False]]))
    assert cut.is_chain
    assert (cut.size.tolist(), cut.tokens.tolist()) == ([1, 2], [[1, 2], [4, 5]])
    cut.check(VOCAB)


def test_drafts_of_sampled_tokens_are_not_shortened_where_their_probabilities_decide() -> None:
    draft = replace(
        Draft.chain(torch.tensor([[1, 2]]), torch.tensor([2])), probs=torch.full((1, 2, VOCAB), 1 / VOCAB)
    )
    with pytest.raises(ConfigError, match=r"FirstNodes may not shorten drafts of sampled tokens"):
        shorten(draft, FirstNodes(count=1), exact_for_any_draft=False)
    assert shorten(draft, FirstNodes(count=1), exact_for_any_draft=True).width == 1
    assert shorten(draft, KeepAll(), exact_for_any_draft=False) is draft


def test_an_arm_names_its_policy_in_its_configuration() -> None:
    node = {
        "_target_": "methods.ngram.NGram",
        "policy": {"_target_": "tests.decoding.test_policy.FirstNodes", "count": 1},
    }
    drafter = build(node, "methods.ngram")
    assert isinstance(drafter, NGram)
    assert drafter.policy == FirstNodes(count=1)
    assert drafter.policy.shortens
    assert not Vanilla().policy.shortens, "without a policy every draft is as wide as it was proposed"
