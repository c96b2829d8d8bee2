"""Every conf/method/*.yaml keeps the contract of a method: slow perhaps, wrong never."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from harness.accept import Coupled, Rejection
from harness.config import ConfigError, build
from harness.decoding import DecodingParams
from harness.engine import Generation
from tests.targets import VOCAB, engine, requests, tiny_model

METHODS = sorted(Path(__file__).parents[1].glob("conf/method/*.yaml"))
DECODINGS = [
    DecodingParams(name="greedy", max_new_tokens=40),
    DecodingParams(name="sampled", temperature=1.0, max_new_tokens=40),
    DecodingParams(name="filtered", temperature=0.7, top_k=9, top_p=0.9, max_new_tokens=40),
]

pytestmark = [
    pytest.mark.parametrize("method", METHODS, ids=lambda path: path.stem),
    pytest.mark.parametrize("family", ["llama", "qwen3"]),
]


def drafter_of(method: Path) -> Any:
    node = OmegaConf.load(method)
    if "head" in node:
        # Of a head that fits these targets; the contract does not ask for good drafts.
        node.head = "random"
    return build(node, method.stem)


def ids_of(generations: list[Generation]) -> list[list[int]]:
    return [generation.output_ids for generation in generations]


def vanilla(family: str, params: DecodingParams) -> list[list[int]]:
    return ids_of(played(drafter_of(METHODS[-1].parent / "vanilla.yaml"), family, params))


def played(drafter: Any, family: str, params: DecodingParams, acceptor: Any = None) -> list[Generation]:
    loop = engine(family)
    drafter.bind(loop.target)
    return [loop.generate([one], drafter, params, acceptor or Coupled())[0] for one in requests()]


@pytest.mark.parametrize("params", DECODINGS, ids=lambda params: params.name)
def test_output_is_vanillas_token_for_token(method: Path, family: str, params: DecodingParams) -> None:
    assert ids_of(played(drafter_of(method), family, params)) == vanilla(family, params)


@pytest.mark.parametrize("params", DECODINGS, ids=lambda params: params.name)
def test_batch_of_three_equals_three_singles(method: Path, family: str, params: DecodingParams) -> None:
    drafter, loop = drafter_of(method), engine(family)
    drafter.bind(loop.target)
    together = loop.generate(requests(), drafter, params, Coupled())
    alone = played(drafter, family, params)
    assert ids_of(together) == ids_of(alone)
    assert [one.accepted for one in together] == [one.accepted for one in alone]


def test_rejection_is_greedy_at_temperature_zero(method: Path, family: str) -> None:
    params = DECODINGS[0]
    assert ids_of(played(drafter_of(method), family, params, Rejection())) == vanilla(family, params)


def test_reset_restores_the_fresh_state(method: Path, family: str) -> None:
    drafter = drafter_of(method)
    first = played(drafter, family, DECODINGS[1])
    again = played(drafter, family, DECODINGS[1])
    assert [one.accepted for one in first] == [one.accepted for one in again]


def test_every_round_is_written_down(method: Path, family: str) -> None:
    for made in played(drafter_of(method), family, DECODINGS[0]):
        rounds = len(made.emitted)
        assert len(made.output_ids) == 1 + sum(made.emitted)
        for column in (made.drafted, made.depth, made.accepted, made.draft_ns, made.verify_ns, made.drafts):
            assert len(column) == rounds
        spent = sum(made.draft_ns) + sum(made.verify_ns) + sum(made.accept_ns) + sum(made.commit_ns)
        assert 0 < spent + made.prefill_ns <= made.total_ns
        assert all(e <= a + 1 for a, e in zip(made.accepted, made.emitted, strict=True))


def test_drafts_are_legal(method: Path, family: str) -> None:
    for made in played(drafter_of(method), family, DECODINGS[0]):
        for draft, _ in made.drafts:
            draft.check(VOCAB)


def test_target_weights_stay_as_they_are(method: Path, family: str) -> None:
    before = [parameter.clone() for parameter in tiny_model(family).parameters()]
    played(drafter_of(method), family, DECODINGS[0])
    assert all(map(torch.equal, before, tiny_model(family).parameters()))


def test_unknown_keys_are_refused_with_near_matches(method: Path, family: str) -> None:
    node = OmegaConf.load(method)
    with pytest.raises(ConfigError, match="unknown key"):
        build(OmegaConf.merge(node, {"max_ngrm": 3}), method.stem)
