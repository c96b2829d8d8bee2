"""Every conf/method/*.yaml keeps the contract of a method: slow perhaps, wrong never."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from harness.config import ConfigError, build
from harness.decoding.acceptance import Coupled, Rejection
from harness.decoding.batch import Generation
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import keeps_memory
from harness.target.model import Target
from methods.rest.datastore import Datastore
from tests.support.targets import VOCAB, engine, requests, tiny_model

METHODS = sorted(Path(__file__).parents[1].glob("conf/method/*.yaml"))
VANILLA = METHODS[0].with_name("vanilla.yaml")
DECODINGS = {
    params.name: params
    for params in (
        DecodingParams(name="greedy", max_new_tokens=24),
        DecodingParams(name="sampled", temperature=1.0, max_new_tokens=24),
        DecodingParams(name="filtered", temperature=0.7, top_k=9, top_p=0.9, max_new_tokens=24),
    )
}

pytestmark = pytest.mark.parametrize("method", METHODS, ids=lambda path: path.stem)
both_families = pytest.mark.parametrize("family", ["llama", "qwen3"])


@pytest.fixture
def family() -> str:
    """The target's family: what a method does hardly depends on it, so one is enough for most tests."""
    return "llama"


@cache
def _datastore() -> str:
    """A folder with outputs of these targets, for methods that draft from one."""
    folder = Path(tempfile.mkdtemp())
    entries = [list(range(VOCAB)), *(list(request.prompt) for request in requests())]
    Datastore.build(entries, vocab_size=VOCAB).save(folder)
    return str(folder)


@cache
def composed(method: Path) -> DictConfig:
    """The method's configuration with whatever fits these targets; the contract asks for no good drafts."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("bench", overrides=["~experiment", "target=tiny", f"method=[{method.stem}]"])
    node: DictConfig = config.methods[method.stem]
    OmegaConf.resolve(node)
    OmegaConf.set_struct(node, False)
    for part in (node, *(node[name] for name in ("first", "second", "base") if name in node)):
        for weights in {"head", "model"} & set(part):
            part[weights] = "random"
        if "mask_token" in part:
            part.mask_token = VOCAB - 1
        if "num_layers" in part:
            part.num_layers = 1
        if "tree" in part and part is not node:
            part.tree.update(total_token=12, depth=2, top_k=4)
        if OmegaConf.is_missing(part, "datastore"):
            part.datastore = _datastore()
    return node


def drafter_of(method: Path, **settings: Any) -> Any:
    return build(OmegaConf.merge(composed(method), settings), method.stem)


def reaching(node: DictConfig, scope: str) -> dict[str, Any]:
    """The settings that let a method, or the parts of a router, remember for so long; {}: no memory."""
    parts = {name: reaching(node[name], scope) for name in ("first", "second") if name in node}
    parts = {name: settings for name, settings in parts.items() if settings}
    return {**parts, **({"memory": scope} if "memory" in node else {})}


def forgetful(method: Path) -> Any:
    """The method with a memory, if any, of one call, so that sequences do not depend on one another."""
    return drafter_of(method, **reaching(composed(method), "call"))


class Costs:
    """Costs that no clock has measured: a step of 1 s, and a tenth more for each further token."""

    def curve(self, batch: float, context: float) -> list[float]:
        return [1 + 0.1 * number for number in range(64)]

    def seconds(self, call: Callable[[int], None], most: int) -> list[float]:
        call(1)
        return [0.05 + 0.01 * number for number in range(most)]


def bound(drafter: Any, target: Target) -> Any:
    drafter.bind(target)
    if drafter.weighs_costs:
        drafter.use_costs(Costs(), 3)
    return drafter


def ids_of(generations: list[Generation]) -> list[list[int]]:
    return [generation.output_ids for generation in generations]


def played(
    drafter: Any, family: str, decoding: str, acceptor: Any = None, order: Sequence[int] = (0, 1, 2)
) -> list[Generation]:
    """Requests by themselves, in this order; their generations stand in the requests' own."""
    loop = engine(family)
    bound(drafter, loop.target)
    asked, params = requests(), DECODINGS[decoding]
    made = {row: loop.generate([asked[row]], drafter, params, acceptor or Coupled())[0] for row in order}
    return [made[row] for row in sorted(made)]


@cache
def fresh(method: Path, family: str, decoding: str) -> list[Generation]:
    """What a new drafter makes; once for all tests."""
    return played(forgetful(method), family, decoding)


@both_families
@pytest.mark.parametrize("decoding", DECODINGS)
def test_output_is_vanillas_token_for_token(method: Path, family: str, decoding: str) -> None:
    assert ids_of(fresh(method, family, decoding)) == ids_of(fresh(VANILLA, family, decoding))


@both_families
@pytest.mark.parametrize("decoding", DECODINGS)
def test_batch_of_three_equals_three_singles(method: Path, family: str, decoding: str) -> None:
    drafter, loop = forgetful(method), engine(family)
    bound(drafter, loop.target)
    together = loop.generate(requests(), drafter, DECODINGS[decoding], Coupled())
    alone = fresh(method, family, decoding)
    assert ids_of(together) == ids_of(alone)
    # A drafter that weighs costs has one width per batch, so its drafts depend on the batch.
    if not drafter.weighs_costs:
        assert [one.accepted for one in together] == [one.accepted for one in alone]


@pytest.mark.parametrize("batch_size", [3, 2])
def test_a_batch_about_different_questions_equals_singles_with_the_methods_own_memory(
    method: Path, family: str, batch_size: int
) -> None:
    if not reaching(composed(method), "question"):
        pytest.skip("has no memory")
    drafter, loop = drafter_of(method), engine(family, batch_size=batch_size)
    bound(drafter, loop.target)
    together = loop.generate(requests(), drafter, DECODINGS["greedy"], Coupled())
    # A drafter by itself finds its memory empty at every question, so it drafts as one that has none.
    alone = fresh(method, family, "greedy")
    for name in ("output_ids", "accepted", "emitted"):
        assert [getattr(one, name) for one in together] == [getattr(one, name) for one in alone]


@pytest.mark.parametrize("decoding", DECODINGS)
def test_a_sequence_that_takes_the_place_of_another_is_the_same_as_alone(
    method: Path, family: str, decoding: str
) -> None:
    drafter, loop = forgetful(method), engine(family, batch_size=2)
    bound(drafter, loop.target)
    # Five requests of different lengths in two places: each place is taken again.
    asked = [one for seed in range(2) for one in requests(seed)][:5]
    params = replace(DECODINGS[decoding], max_new_tokens=13)
    together = loop.generate(asked, drafter, params, Coupled())
    alone = [loop.generate([one], drafter, params, Coupled())[0] for one in asked]
    assert ids_of(together) == ids_of(alone)
    # A drafter that weighs costs has one width per batch, so its drafts depend on the batch.
    if not drafter.weighs_costs:
        assert [one.accepted for one in together] == [one.accepted for one in alone]


def test_rejection_is_greedy_at_temperature_zero(method: Path, family: str) -> None:
    made = played(drafter_of(method), family, "greedy", Rejection())
    assert ids_of(made) == ids_of(fresh(VANILLA, family, "greedy"))


def test_reset_restores_the_fresh_state(method: Path, family: str) -> None:
    drafter = forgetful(method)
    played(drafter, family, "sampled", order=(1,))
    again = played(drafter, family, "sampled")
    assert [one.accepted for one in again] == [one.accepted for one in fresh(method, family, "sampled")]


@pytest.mark.parametrize("scope", ["call", "question", "process"])
def test_a_second_identical_request_shows_how_far_the_memory_reaches(
    method: Path, family: str, scope: str
) -> None:
    settings = reaching(composed(method), scope)
    if not settings and scope != "call":
        pytest.skip("has no memory")
    drafter, loop = drafter_of(method, **settings), engine(family)
    bound(drafter, loop.target)
    assert drafter.scope == scope or not settings
    asked, params, usual = requests()[1], DECODINGS["greedy"], fresh(method, family, "greedy")[1]
    for number, same_question in enumerate((False, True, False)):
        made = loop.generate([asked], drafter, params, Coupled(), same_question=same_question)[0]
        assert made.output_ids == usual.output_ids, "memory changes the speed alone"
        if number and keeps_memory(drafter.scope, same_question):
            assert len(made.accepted) < len(usual.accepted), "it takes fewer rounds"
        else:
            assert (made.drafted, made.accepted) == (usual.drafted, usual.accepted)


def test_a_batch_that_shares_a_memory_emits_what_vanilla_emits(method: Path, family: str) -> None:
    settings = reaching(composed(method), "process")
    if not settings:
        pytest.skip("has no memory")
    drafter, loop = drafter_of(method, **settings), engine(family, batch_size=2)
    bound(drafter, loop.target)
    for _ in range(2):
        made = loop.generate(requests(), drafter, DECODINGS["sampled"], Coupled())
        assert ids_of(made) == ids_of(fresh(VANILLA, family, "sampled"))


def test_permuting_the_prompts_leaves_each_ones_acceptance(method: Path, family: str) -> None:
    permuted = played(forgetful(method), family, "greedy", order=(2, 0, 1))
    usual = fresh(method, family, "greedy")
    assert [(one.drafted, one.accepted) for one in permuted] == [(one.drafted, one.accepted) for one in usual]


def test_every_round_is_written_down(method: Path, family: str) -> None:
    for made in fresh(method, family, "greedy"):
        rounds = len(made.emitted)
        assert len(made.output_ids) == 1 + sum(made.emitted)
        for column in (made.drafted, made.depth, made.accepted, made.draft_ns, made.verify_ns, made.drafts):
            assert len(column) == rounds
        spent = sum(made.draft_ns) + sum(made.verify_ns) + sum(made.accept_ns) + sum(made.commit_ns)
        assert 0 < spent + made.prefill_ns <= made.total_ns
        assert all(e <= a + 1 for a, e in zip(made.accepted, made.emitted, strict=True))


def test_drafts_are_legal(method: Path, family: str) -> None:
    for made in fresh(method, family, "greedy"):
        for draft, _ in made.drafts:
            draft.check(VOCAB)


def test_target_weights_stay_as_they_are(method: Path, family: str) -> None:
    fresh(method, family, "greedy")
    built_anew = tiny_model.__wrapped__(family)
    assert all(map(torch.equal, built_anew.parameters(), tiny_model(family).parameters()))


def test_unknown_keys_are_refused_with_near_matches(method: Path, family: str) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        drafter_of(method, max_ngrm=3)
