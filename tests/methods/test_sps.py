"""SpS: drafts are the draft model's own, with their distribution; a model that does not fit is refused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from harness.config import ConfigError
from harness.conformance.statistics import LEAST_P, NUM_TOKENS, chi_square_p, exact_joint, sample
from harness.decoding.acceptance import Coupled, Rejection
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import Outcome
from harness.target.model import Target
from methods.sps import SpS
from methods.sps.drafter import _drawn
from tests.support.targets import VOCAB, engine, requests, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The target of the tests as a checkpoint."""
    place = tmp_path_factory.mktemp("draft")
    tiny_model("llama").save_pretrained(place)
    return str(place)


def bound(target: Target, text: Sequence[int], **settings: Any) -> SpS:
    drafter = SpS(**settings)
    drafter.bind(target)
    drafter.reset(1)
    drafter.observe(Outcome(committed=[list(text[:-1])], pending=[text[-1]]))
    return drafter


def bound_again(drafter: SpS, text: Sequence[int]) -> SpS:
    """The same drafter with the next sequence, of the same text."""
    drafter.reset(1)
    drafter.observe(Outcome(committed=[list(text[:-1])], pending=[text[-1]]))
    return drafter


def small(seed: int) -> Any:
    """A model of one block and seven tokens, whose distributions are neither flat nor one token's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=7, **shape))
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    return model.eval()


def test_a_draft_is_the_greedy_continuation_of_the_draft_model_and_caches_nothing_wrong(folder: str) -> None:
    loop = engine()
    drafter = SpS(model=folder, min_confidence=0, draft_length=5)
    drafter.bind(loop.target)
    params = DecodingParams(name="greedy", max_new_tokens=31)
    made = loop.generate(requests(), drafter, params, Coupled())
    # The draft model is the target, so every drafted token is accepted.
    for one in made:
        assert one.accepted == one.drafted
        assert max(one.accepted) == 5


def test_the_draft_ends_behind_a_token_of_little_confidence(tmp_path: Path) -> None:
    target, text, model = Target(small(0)), [1, 4, 1], str(tmp_path)
    small(1).save_pretrained(model)
    whole = bound(target, text, model=model, min_confidence=0.0).propose([30])
    assert whole.width == 20
    assert whole.confidence is not None
    products = [1.0, *whole.confidence[0].tolist()]
    given = [after / before for before, after in itertools.pairwise(products)]
    # The first token that got less than all before it; the bound lies between it and them.
    end = next(place for place in range(1, 20) if given[place] < min(given[:place]) - 0.01)
    least = (given[end] + min(given[:end])) / 2
    short = bound(target, text, model=model, min_confidence=least).propose([30])
    assert short.tokens[0].tolist() == whole.tokens[0, : end + 1].tolist()
    assert bound(target, text, model=model).propose([0]).width == 0


def test_drawn_tokens_come_with_the_distribution_that_they_were_drawn_from(folder: str) -> None:
    target, text = engine().target, list(requests()[1].prompt)
    drafter = bound(target, text, model=folder, temperature=0.8, min_confidence=0, draft_length=4)
    draft = drafter.propose([9])
    assert draft.probs is not None
    assert torch.equal(drafter.propose([9]).tokens, draft.tokens), "the same sequence with the same text"
    others = [bound_again(drafter, text).propose([9]).tokens for _ in range(4)]
    assert any(not torch.equal(other, draft.tokens) for other in others), "every sequence has its own noise"
    tokens = draft.tokens[0].tolist()
    logits, _ = target.trace(torch.tensor([[*text, *tokens[:-1]]]), ())
    expected = torch.softmax(logits[0, len(text) - 1 :].float() / 0.8, dim=-1)
    torch.testing.assert_close(draft.probs[0], expected, rtol=1e-4, atol=1e-5)
    confidence = expected.gather(1, draft.tokens[0][:, None])[:, 0].cumprod(0)
    assert draft.confidence is not None
    torch.testing.assert_close(draft.confidence[0], confidence, rtol=1e-4, atol=1e-5)


def test_a_draft_model_that_is_the_target_is_never_rejected(folder: str) -> None:
    loop = engine()
    drafter = SpS(model=folder, temperature=1.0, min_confidence=0, draft_length=3)
    drafter.bind(loop.target)
    params = DecodingParams(name="sampled", temperature=1.0, max_new_tokens=20, ignore_end_token=True)
    made = loop.generate(requests(), drafter, params, Rejection())
    # p and q differ by rounding alone.
    assert sum(sum(one.accepted) for one in made) >= sum(sum(one.drafted) for one in made) - 1


def test_sampled_drafts_leave_the_targets_distribution_as_it_is(tmp_path: Path) -> None:
    """The joint distribution of three tokens; a draft that repeats in every sequence of a text skews it."""
    target, prompt = Target(small(0)), [1, 4, 2]
    small(1).save_pretrained(tmp_path)
    drafter = SpS(model=str(tmp_path), temperature=1.0, min_confidence=0, draft_length=2)
    drafter.bind(target)
    params = DecodingParams(name="s", temperature=1.0, max_new_tokens=NUM_TOKENS, ignore_end_token=True)
    counts = sample(target, drafter, Rejection(), prompt, params, seed=0, num_samples=200)
    joint = exact_joint(target, prompt, params)
    assert chi_square_p(counts.flatten(), joint.flatten()) > LEAST_P


def test_a_draw_follows_the_cumulative_distribution_and_takes_no_impossible_token() -> None:
    probs = torch.tensor([0.25, 0.0, 0.5, 0.25, 0.0])
    assert [_drawn(probs, point) for point in (0.0, 0.24, 0.25, 0.74, 0.76, 0.9999999999)] == [
        0,
        0,
        2,
        2,
        3,
        3,
    ]


def test_first_layers_are_the_targets_own(folder: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    target = Target(model.eval())
    drafter = bound(target, requests()[0].prompt, model="first_layers", num_layers=2)
    assert drafter.card()["num_layers"] == 2
    ours, theirs = drafter._model.model.layers[1], tiny_model("llama").model.layers[1]
    torch.testing.assert_close(ours.mlp.up_proj.weight, theirs.mlp.up_proj.weight)
    assert bound(target, requests()[0].prompt, model="first_layers", num_layers=3).propose([9]).width > 0


def test_first_layers_of_a_model_of_the_hub_are_those_of_its_revision(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, asked = engine().target, []

    def stored(name: str, revision: str, local_files_only: bool = False, **_: Any) -> str:
        assert local_files_only, "the hub cannot be reached"
        asked.append((name, revision))
        return folder

    monkeypatch.setattr(target.config, "_name_or_path", "some/model")
    monkeypatch.setattr(target.config, "_commit_hash", "c0ffee", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stored)
    drafter = bound(target, requests()[0].prompt, model="first_layers", num_layers=1)
    assert drafter.card()["num_layers"] == 1
    assert asked == [("some/model", "c0ffee")]


def test_a_draft_model_that_does_not_fit_is_refused(folder: str, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=77, **shape)).save_pretrained(tmp_path)
    target = engine().target
    told = f"a vocabulary of 77 tokens, the target has {VOCAB}.*methods.sps.model=FOLDER"
    with pytest.raises(ConfigError, match=told):
        SpS(model=str(tmp_path)).bind(target)
    with pytest.raises(ConfigError, match="no draft model is known"):
        SpS().bind(target)
    with pytest.raises(ConfigError, match="the target has only 3 blocks"):
        SpS(model="random", num_layers=4).bind(target)
    with pytest.raises(ConfigError, match="its first blocks cannot be read again"):
        SpS(model="first_layers", num_layers=1).bind(target)
    with pytest.raises(ConfigError, match="the hub cannot be reached"):
        SpS(model="nobody/nothing").bind(target)


def test_a_rehearsal_repeats_the_same_forward(folder: str) -> None:
    drafter = SpS(model=folder)
    drafter.bind(DecodingLoop(Target(tiny_model("llama")), {3}, 512).target)
    forwards: list[tuple[tuple[int, ...], int, torch.Tensor]] = []

    def watch(_: Any, given: tuple[torch.Tensor], names: dict[str, Any], made: Any) -> None:
        shape = tuple(given[0].shape)
        forwards.append((shape, names["past_key_values"].get_seq_length() - shape[1], made.logits))

    drafter._model.register_forward_hook(watch, with_kwargs=True)
    call = drafter.rehearse(2, 8)
    for count in (1, 3, 1):
        call(count)
    # The context fills the cache once; every call finds it as long.
    assert [(shape, cached) for shape, cached, _ in forwards] == [
        ((2, 8), 0),
        ((2, 1), 8),
        ((2, 3), 8),
        ((2, 1), 8),
    ]
    assert torch.equal(forwards[1][2], forwards[3][2])
