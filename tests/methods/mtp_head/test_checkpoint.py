"""Heads of every layout are found in the target's checkpoint, and read as they were written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen3NextConfig

from harness.config import ConfigError
from harness.drafting.trees import DynamicTree
from harness.target.checkpoint import why_refused
from harness.target.model import Target
from methods.mtp_head import MtpHead
from tests.methods.mtp_head.heads import CONFIGS, NUM_LAYERS, bound, save, written
from tests.support.targets import tiny_model


@pytest.mark.parametrize("family", CONFIGS)
def test_a_head_is_read_as_it_was_written(family: str, tmp_path: Path) -> None:
    made = bound(family, hidden_first=family == "mimo")
    state = made.network.state_dict()
    again = bound(family, save(tmp_path, written(state, family), family))
    assert list(again.network.state_dict()) == list(state)
    assert all(map(torch.equal, again.network.state_dict().values(), state.values()))
    card = again.card()
    assert card["layout"] == ("deepseek" if family == "glm" else family)
    assert (card["hidden_first"], card["hidden"], card["feed_back"]) == (family == "mimo", "normed", "normed")
    assert (card["num_heads"], card["heads_used"], len(card["sha256"])) == (1, 1, 16)


def test_copies_of_the_embedding_are_left_out_and_further_heads_where_asked(tmp_path: Path) -> None:
    tensors = written(bound("glm").network.state_dict(), "glm")
    first = f"model.layers.{NUM_LAYERS}."
    second = {name.replace(first, f"model.layers.{NUM_LAYERS + 1}."): one for name, one in tensors.items()}
    shared = {
        f"{first}embed_tokens.weight": torch.ones(61, 32),
        f"{first}shared_head.head.weight": torch.ones(61, 32),
    }
    path = save(tmp_path, {**tensors, **second, **shared}, "glm")
    for most, used in ((None, 2), (1, 1)):
        card = bound("glm", path, num_heads=most).card()
        assert (card["num_heads"], card["heads_used"]) == (2, used)


def test_a_checkpoint_without_a_head_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no multi-token-prediction head.*deepseek, mimo, qwen"):
        bound("glm", save(tmp_path, {}, "glm"))


def test_an_incomplete_head_is_refused_by_the_tensor(tmp_path: Path) -> None:
    tensors = written(bound("qwen").network.state_dict(), "qwen")
    del tensors["mtp.layers.0.self_attn.q_norm.weight"]
    with pytest.raises(ConfigError, match=r"missing block\.self_attn\.q_norm\.weight \[8\]"):
        bound("qwen", save(tmp_path, tensors, "qwen"))


def test_a_quantised_head_is_refused_by_the_tensor(tmp_path: Path) -> None:
    tensors = written(bound("qwen").network.state_dict(), "qwen")
    tensors["mtp.fc.weight"] = tensors["mtp.fc.weight"].to(torch.float8_e4m3fn)
    with pytest.raises(ConfigError, match=r"eh_proj\.weight is quantised \(float8_e4m3fn\)"):
        bound("qwen", save(tmp_path, tensors, "qwen"))


def test_a_target_that_has_no_checkpoint_needs_a_head() -> None:
    drafter = MtpHead(tree=DynamicTree())
    with pytest.raises(ConfigError, match=r"methods\.mtp_head\.head=FOLDER"):
        drafter.bind(Target(tiny_model("llama")))


def test_a_hybrid_trunk_is_refused_by_name() -> None:
    refused = why_refused(Qwen3NextConfig(num_hidden_layers=4))
    assert refused is not None
    assert "qwen3_next" in refused


def test_the_reading_of_the_last_state_that_guesses_far_better_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bound("mimo", hidden_first=True)
    head = save(tmp_path, written(made.network.state_dict(), "mimo"), "mimo")
    prompts = [list(range(4, 40)), list(range(30, 9, -1))]
    bound("mimo", head, hidden="raw").check(prompts)
    monkeypatch.setattr("methods.mtp_head.drafter.num_right", lambda *_: (3, 40, 100))
    for given, other in (("raw", "normed"), ("normed", "raw")):
        with pytest.raises(ConfigError, match=f"3% .* {other} one 40%; type hidden={other}"):
            bound("mimo", head, hidden=given).check(prompts)
