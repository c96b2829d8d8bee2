"""Targets with a sliding window in some layers, or in all, decode as transformers' own forward says."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from harness.config import ConfigError
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Generation
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter
from harness.runtime.attention import Window
from harness.target.checkpoint import WINDOWED, why_refused
from harness.target.footprint import cache_bytes_per_token
from harness.target.model import Target
from methods.ngram import NGram
from methods.vanilla import Vanilla
from tests.support.targets import END, VOCAB, RandomTrees, oracle, requests

WINDOW = 5
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "sliding_window": WINDOW,
    "initializer_range": 0.2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_OWN: dict[str, dict[str, Any]] = {
    "mistral": {},
    "afmoe": {**_EXPERTS, "num_dense_layers": 1},
    "kolibri1": {**_EXPERTS, "shared_expert_intermediate_size": 16},
    "gemma4_text": {
        "num_hidden_layers": 5,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB,
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        # The last layers read the keys and values of earlier ones.
        "num_kv_shared_layers": 2,
    },
}
"""What an architecture needs beside the common sizes."""


@cache
def model_of(model_type: str) -> Any:
    sizes = {**_SIZES, **_OWN.get(model_type, {}), "use_sliding_window": True}
    if model_type != "mistral":
        kinds = [_SLIDING, _FULL] * sizes["num_hidden_layers"]
        sizes["layer_types"] = [*kinds[: sizes["num_hidden_layers"] - 1], _FULL]
    config = CONFIG_MAPPING[model_type](**sizes)
    assert why_refused(config) is None
    sliding = frozenset(place for place, kind in enumerate(sizes.get("layer_types", [])) if kind == _SLIDING)
    assert Window.of(config) == Window(size=WINDOW, layers=sliding or None)
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def loop_of(model_type: str, **options: Any) -> DecodingLoop:
    batch = options.pop("batch_size", 3)
    return DecodingLoop(Target(model_of(model_type), **options), {END}, 512, batch_size=batch)


def made(loop: DecodingLoop, drafter: Drafter, params: DecodingParams) -> list[Generation]:
    drafter.bind(loop.target)
    return loop.generate(requests(), drafter, params, Coupled())


def paths_of(draft: Draft, row: int) -> Iterator[tuple[int, list[int]]]:
    """Every node of a row, with the tokens from the first level down to it."""
    for node in range(int(draft.size[row])):
        path, here = list[int](), node
        while here >= 0:
            path.insert(0, int(draft.tokens[row, here]))
            here = int(draft.parents[row, here])
        yield node, path


def grown(target: Target, lengths: tuple[int, int]) -> list[list[int]]:
    """Two sequences of these lengths, partly fed as prompts and partly decoded."""
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randint(4, VOCAB, (length,), generator=generator).tolist() for length in lengths]
    target.begin(2)
    target.prefill([0, 1], [text[:-3] for text in texts])
    for place in (-3, -2, -1):
        target.verify(torch.tensor([text[place] for text in texts]), Draft.empty(2, target.device))
        target.commit(None, [0, 0])
    return texts


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("model_type", WINDOWED)
@pytest.mark.parametrize("lengths", [(17, 9), (801, 263), (530, 530)])
def test_every_node_of_a_tree_past_the_window_has_the_logits_of_its_own_text(
    model_type: str, kind: Any, lengths: tuple[int, int]
) -> None:
    """Beyond `Window.num_slots`, 261 here, tokens take turns in the slots, one sequence several times."""
    target = Target(model_of(model_type), cache=kind)
    assert cache_bytes_per_token(target.model) > 0
    texts = grown(target, lengths)
    draft = Draft(
        tokens=torch.tensor([[7, 8, 9, 10, 11, 12, 13], [20, 21, 22, 23, 24, 0, 0]]),
        parents=torch.tensor([[-1, -1, 0, 1, 2, 4, 5], [-1, 0, 1, 1, 2, -1, -1]]),
        size=torch.tensor([7, 5]),
    )
    logits = target.verify(torch.tensor([40, 41]), draft)
    for row, prompt in enumerate(texts):
        for node, path in [(-1, []), *paths_of(draft, row)]:
            text = torch.tensor([[*prompt, 40 + row, *path]])
            expected, _ = target.trace(text, ())
            torch.testing.assert_close(logits[row, 1 + node], expected[0, -1], atol=2e-4, rtol=1e-4)
    # What was accepted moves to its slots; the next round sees it there.
    target.commit(torch.tensor([[1, 3], [0, 1]]), [2, 1])
    after = target.verify(torch.tensor([50, 51]), Draft.empty(2, target.device))
    for row, path in ((0, [40, 8, 10, 50]), (1, [41, 20, 51])):
        expected, _ = target.trace(torch.tensor([[*texts[row], *path]]), ())
        torch.testing.assert_close(after[row, 0], expected[0, -1], atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["gemma3_text", "mistral"])
def test_a_layer_with_a_window_keeps_no_more_rows_than_a_rollback_can_need(model_type: str) -> None:
    target = Target(model_of(model_type))
    grown(target, (801, 263))
    window = target.masks.window
    assert window is not None
    slots = [keys.shape[2] for keys in target.cache.memory.keys]
    assert slots == [window.num_slots if window.holds_in(layer) else 1024 for layer in range(len(slots))]


@torch.no_grad()
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
def test_compiled_steps_see_the_same_rows() -> None:
    draft = Draft.chain(torch.tensor([[7, 8, 9], [10, 11, 12]]), torch.tensor([3, 3]))
    found = []
    for options in ({}, {"cache": "static", "compiled": True}):
        target = Target(deepcopy(model_of("mistral")), **options)
        grown(target, (801, 263))
        target.verify(torch.tensor([40, 41]), draft)
        target.commit(None, [2, 0])
        found.append(target.verify(torch.tensor([50, 51]), draft))
        assert not target.remarks
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_more_new_tokens_than_the_kept_rows_allow_are_refused() -> None:
    target = Target(model_of("mistral"))
    grown(target, (801, 263))
    wide = Draft.chain(torch.full((2, 300), 7), torch.tensor([300, 300]))
    with pytest.raises(ConfigError, match="301 new tokens in one forward"):
        target.verify(torch.tensor([40, 41]), wide)


@pytest.mark.parametrize("kernel", ["grouped", "eager"])
@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen3", "mistral"])
def test_trees_and_chains_emit_what_vanilla_emits_past_the_window(model_type: str, kernel: Any) -> None:
    params = [
        DecodingParams(name="greedy", max_new_tokens=16, ignore_end_token=True),
        DecodingParams(name="sampled", temperature=1.0, max_new_tokens=12, ignore_end_token=True),
    ]
    for one in params:
        expected = [made.output_ids for made in made(loop_of(model_type, batch_size=1), Vanilla(), one)]
        loop = loop_of(model_type, kernel=kernel)
        trees = RandomTrees(oracle=oracle(requests(), expected))
        drafted = made(loop, trees, one)
        assert [made.output_ids for made in drafted] == expected
        assert sum(sum(made.accepted) for made in drafted) > 0
        assert [made.output_ids for made in made(loop, NGram(), one)] == expected


@torch.no_grad()
def test_trees_behind_a_text_have_windows_of_their_own_for_training() -> None:
    target = Target(model_of("qwen3"))
    text, positions = torch.arange(4, 16), torch.arange(12)
    # Tokens 10 and 11 are siblings behind token 9.
    positions[11] = 10
    visible = torch.ones(12, 12, dtype=torch.bool).tril()
    visible[11, 10] = False
    states = target.trace_visible(text, positions, visible)
    alone, _ = target.trace(torch.cat([text[:10], text[11:]])[None], ())
    torch.testing.assert_close(target.lm_head(states[11]), alone[0, -1], atol=1e-4, rtol=1e-4)


def test_a_method_that_trains_the_target_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="qwen3 has layers of sliding attention"):
        Target(model_of("qwen3")).copied_model()
