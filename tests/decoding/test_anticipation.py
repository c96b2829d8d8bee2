"""What is verified may depend on confidences, never on the drawn tokens: the example with two tokens.

The target gives (0.7, 0.3), the drafter draws its token from (0.5, 0.5). A policy that verifies the first
token and drops the second, after it was drawn, turns the law of the output into (0.85, 0.15) where tokens are
accepted with min(1, p/q): every dropped draft is another draw from the target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.config import ConfigError, configurable
from harness.decoding.acceptance import Acceptor, Coupled, Rejection
from harness.decoding.sampling import DecodingParams, TokenSampler, stream_key
from harness.drafting.draft import Draft, TreeShape
from harness.drafting.draft_policy import DraftPolicy, shorten
from methods.shared.cost_aware.policy import CostAwarePolicy

TARGET, DRAFTER = torch.tensor([0.7, 0.3]), torch.tensor([0.5, 0.5])
NUM = 8_000
PARAMS = DecodingParams(name="sampled", temperature=1.0)
BAND = 5 * (0.7 * 0.3 / NUM) ** 0.5
"""Five standard errors of a share."""


@configurable
class Anticipating(DraftPolicy):
    """Keeps what the drafter trusts: here the first token, whose confidence was made to tell it apart."""

    def select(self, shape: TreeShape) -> Tensor:
        assert shape.confidence is not None
        return shape.confidence > 0.5


class Costs:
    def curve(self, batch: float, context: float) -> list[float]:
        return [1.0, 1.3]

    def seconds(self, call: Callable[[int], None], most: int) -> list[float]:
        return [0.0] * most


def drawn(sampled: bool, seed: int = 0) -> Draft:
    """Drafts of a token each, drawn from the drafter; the confidence tells which one it was."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.multinomial(DRAFTER, NUM, replacement=True, generator=random)[:, None]
    chains = Draft.chain(tokens, torch.ones(NUM, dtype=torch.int64))
    return Draft(
        tokens=tokens,
        parents=chains.parents,
        size=chains.size,
        is_chain=True,
        confidence=torch.where(tokens == 0, 0.9, 0.1),
        probs=DRAFTER.expand(NUM, 1, 2) if sampled else None,
    )


def share_of_first(acceptor: Acceptor, draft: Draft) -> float:
    """How often the first token that is emitted is token 0."""
    keys = [stream_key(1, str(row), 0, 0) for row in range(NUM)]
    sampler = TokenSampler(PARAMS, keys, 2, torch.device("cpu"))
    logits = TARGET.log().expand(NUM, 1 + draft.width, 2)
    accepted = acceptor.accept(logits, draft, sampler, torch.ones(NUM, dtype=torch.int64))
    if not draft.width:
        return float((accepted.token == 0).float().mean())
    kept = draft.tokens.gather(1, accepted.path)[:, 0] if accepted.path.shape[1] else accepted.token
    return float((torch.where(accepted.length > 0, kept, accepted.token) == 0).float().mean())


def test_cutting_behind_the_draw_distorts_what_is_accepted_with_p_over_q() -> None:
    """The policy applied by force: `shorten` would refuse it."""
    draft = drawn(sampled=True)
    keep = Anticipating().select(draft.shape)
    cut = draft.restricted(keep)
    assert share_of_first(Rejection(), draft) == pytest.approx(0.7, abs=BAND)
    assert share_of_first(Rejection(), cut) == pytest.approx(0.85, abs=BAND)


@pytest.mark.parametrize("policy", [Anticipating(), CostAwarePolicy()], ids=["anticipating", "cost_aware"])
def test_so_a_policy_may_not_shorten_drawn_drafts_there(policy: Any) -> None:
    with pytest.raises(ConfigError, match=r"may not shorten drafts of sampled tokens"):
        shorten(drawn(sampled=True), policy, exact_for_any_draft=False)


def test_coupled_acceptance_is_exact_whatever_was_cut_by() -> None:
    draft = drawn(sampled=True)
    cut = shorten(draft, Anticipating(), exact_for_any_draft=True)
    assert 0 < int(cut.size.sum()) < NUM
    assert share_of_first(Coupled(), cut) == pytest.approx(0.7, abs=BAND)


@pytest.mark.parametrize("acceptor", [Coupled(), Rejection()], ids=["coupled", "rejection"])
@pytest.mark.parametrize("token", [0, 1])
def test_a_chosen_draft_is_exact_with_and_without_the_cost_aware_cut(acceptor: Acceptor, token: int) -> None:
    """A draft that is not drawn tells nothing about the coins, so any cut by its confidence is harmless."""
    chains = Draft.chain(torch.full((NUM, 1), token), torch.ones(NUM, dtype=torch.int64))
    for confidence, width in ((0.9, 1), (0.1, 0)):
        draft = Draft(
            tokens=chains.tokens,
            parents=chains.parents,
            size=chains.size,
            is_chain=True,
            confidence=torch.full((NUM, 1), confidence),
        )
        policy = CostAwarePolicy()
        policy.use_costs(Costs(), NUM, lambda rows, context: None)
        policy.new_call(keep_memory=False)
        cut = shorten(draft, policy, acceptor.coupled)
        assert cut.width == width
        assert share_of_first(acceptor, cut) == pytest.approx(0.7, abs=BAND)
