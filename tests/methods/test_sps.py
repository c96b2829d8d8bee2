"""SpS: drafts are the draft model's own, with their distribution; a model that does not fit is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config import ConfigError
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


def test_the_draft_ends_behind_a_token_of_little_confidence(folder: str) -> None:
    target, text = engine().target, requests()[2].prompt
    lengths = [
        bound(target, text, model=folder, min_confidence=least).propose([30]).width
        for least in (0.0, 0.9, 1.0)
    ]
    assert lengths[0] == 20
    assert 1 == lengths[2] <= lengths[1] <= 20
    assert bound(target, text, model=folder).propose([0]).width == 0


def test_drawn_tokens_come_with_the_distribution_that_they_were_drawn_from(folder: str) -> None:
    target, text = engine().target, list(requests()[1].prompt)
    drafter = bound(target, text, model=folder, temperature=0.8, min_confidence=0, draft_length=4)
    draft = drafter.propose([9])
    assert draft.probs is not None
    assert torch.equal(drafter.propose([9]).tokens, draft.tokens), "the noise depends on the text alone"
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
    call = drafter.rehearse(2, 8)
    for count in (1, 3, 1):
        call(count)
