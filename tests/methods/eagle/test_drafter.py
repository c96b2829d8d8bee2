"""EAGLE drafters against the reference, on tiny targets of every family and heads of every kind."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from harness.config import ConfigError
from harness.decoding import acceptance
from harness.decoding.acceptance import Coupled, sweep
from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams, stream_key
from harness.drafting.draft import Draft
from harness.drafting.drafter import Outcome
from harness.drafting.trees import DynamicTree, StaticTree, TreePolicy
from harness.target.model import Target
from methods.eagle import Eagle
from methods.shared.eagle import tap_check
from methods.shared.eagle.checkpoint import save_head
from methods.shared.eagle.heads.architectures import new_head
from methods.shared.eagle.heads.base import DraftHead, HeadShape
from tests.support.reference_eagle import Reference

VOCAB, NUM_LAYERS = 12, 8
GREEDY = DecodingParams(name="greedy", max_new_tokens=40, ignore_end_token=True)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama, scaled rope": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3_ROPE}),
    "llama, tied, biased": (
        LlamaConfig,
        LlamaForCausalLM,
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 24, "tie_word_embeddings": True}),
    "mixtral": (
        MixtralConfig,
        MixtralForCausalLM,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
}


@cache
def model_of(family: str) -> Any:
    config, model, extra = FAMILIES[family]
    torch.manual_seed(1)
    made = model(
        config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            **extra,
        )
    )
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return made.eval()


def shape_of(architecture: Any, **options: Any) -> HeadShape:
    usual: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCAB,
        "draft_vocab_size": VOCAB,
        "target_hidden_size": 32,
        "num_taps": 1 if architecture == "eagle" else 3,
    }
    return HeadShape(architecture=architecture, **{**usual, **options})


HEADS = {
    "eagle": shape_of("eagle"),
    "eagle, biases, embedding of its own": shape_of("eagle", fc_bias=True, qkv_bias=True, own_embedding=True),
    "eagle3": shape_of("eagle3"),
    "eagle3, draft vocabulary": shape_of("eagle3", draft_vocab_size=9),
    "eagle3, target's LM head": shape_of("eagle3", own_lm_head=False),
    "eagle3, head size of its own": shape_of(
        "eagle3", head_dim=16, num_heads=6, num_kv_heads=3, qk_norm=True
    ),
    "eagle3, normed state recurs": shape_of("eagle3", norm_output=True),
    "eagle3, normed residual": shape_of("eagle3", norm_before_residual=True, rope_theta=500000.0),
}


def random_weights(shape: HeadShape) -> DraftHead:
    torch.manual_seed(2)
    head = new_head(shape)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.4) if parameter.ndim > 1 else parameter.uniform_(0.5, 1.5)
    if shape.draft_vocab_size < shape.vocab_size:
        kept = torch.tensor([0, 1, 2, 4, 5, 6, 8, 10, 11])
        head.d2t.copy_(kept - torch.arange(len(kept)))
    return head


def folder_of(head: DraftHead, tmp_path: Path) -> str:
    save_head(head, tmp_path / "head", aux_layers=None, card={})
    return str(tmp_path / "head")


def bound(loop: DecodingLoop, folder: str, shape: HeadShape, tree: TreePolicy, **options: Any) -> Eagle:
    drafter = Eagle(architecture=shape.architecture, tree=tree, head=folder, **options)
    drafter.bind(loop.target)
    return drafter


def loop_on(family: str = "llama") -> DecodingLoop:
    return DecodingLoop(Target(model_of(family)), (), 512, timed=False)


def request(prompt: list[int], number: int = 0) -> Request:
    return Request(prompt=prompt, key=stream_key(0, str(number), 0, 0))


def reference(family: str, head: DraftHead) -> Reference:
    shape = head.shape
    weights = {name: tensor for name, tensor in head.state_dict().items() if "rotary" not in name}
    return Reference(
        model=model_of(family),
        weights=weights,
        eagle3=shape.architecture == "eagle3",
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rope_theta=shape.rope_theta,
        norm_output=shape.norm_output,
        norm_before_residual=shape.norm_before_residual,
    )


def paths(draft: Draft) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(draft.tokens[0].tolist(), draft.parents[0].tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


Rounds = list[tuple[list[tuple[int, ...]], int]]
"""Per round the paths of the draft and how many tokens were accepted."""


def rounds_of_both(family: str, head: DraftHead, tmp_path: Path, tree: DynamicTree) -> tuple[Rounds, Rounds]:
    """What the loop and the reference make of a few prompts; their output ids are equal."""
    num_rounds = 4
    loop = loop_on(family)
    drafter = bound(loop, folder_of(head, tmp_path), head.shape, tree)
    ours: Rounds = []
    theirs: Rounds = []
    for prompt in (PROMPT, PROMPT[:2], [7, 7, 0, 11]):
        slow = reference(family, head)
        ids = slow.generate(prompt, num_rounds, tree.total_token, tree.depth, tree.top_k)
        params = replace(GREEDY, max_new_tokens=len(ids) + tree.depth + 2)
        made = loop.generate([request(prompt)], drafter, params, Coupled())[0]
        assert made.output_ids[: len(ids)] == ids
        drafts = [paths(draft) for draft, _ in made.drafts[:num_rounds]]
        ours += list(zip(drafts, made.accepted[:num_rounds], strict=True))
        theirs += [(one.paths, len(one.accepted)) for one in slow.rounds]
    return ours, theirs


@pytest.mark.parametrize("kind", HEADS)
def test_heads_of_every_kind_draft_what_the_reference_drafts(kind: str, tmp_path: Path) -> None:
    tree = DynamicTree(total_token=40, depth=2, top_k=9)
    ours, theirs = rounds_of_both("llama", random_weights(HEADS[kind]), tmp_path, tree)
    assert ours == theirs
    assert sum(accepted for _, accepted in theirs) > 0


@pytest.mark.parametrize("architecture", ["eagle", "eagle3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_targets_of_every_family_are_drafted_for(family: str, architecture: str, tmp_path: Path) -> None:
    tree = DynamicTree(total_token=10, depth=2, top_k=4)
    ours, theirs = rounds_of_both(family, random_weights(HEADS[architecture]), tmp_path, tree)
    assert ours == theirs


def test_a_chain_is_what_the_reference_drafts(tmp_path: Path) -> None:
    tree = DynamicTree(total_token=6, depth=4, top_k=1)
    ours, theirs = rounds_of_both("llama", random_weights(HEADS["eagle3"]), tmp_path, tree)
    assert ours == theirs


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "tree", [DynamicTree(total_token=14, depth=3, top_k=4), StaticTree()], ids=["dynamic", "static"]
)
def test_a_ragged_batch_is_drafted_like_its_sequences_alone(
    temperature: float, tree: TreePolicy, tmp_path: Path
) -> None:
    head, loop = random_weights(HEADS["eagle3"]), loop_on()
    drafter = bound(loop, folder_of(head, tmp_path), head.shape, tree)
    params = DecodingParams(name="any", temperature=temperature, max_new_tokens=30)
    prompts = [request(PROMPT, 1), request(PROMPT[:3], 2), request([7, *PROMPT, 7, 7], 3)]
    together = DecodingLoop(loop.target, {5}, 512, timed=False).generate(prompts, drafter, params, Coupled())
    for one, prompt in zip(together, prompts, strict=True):
        alone = DecodingLoop(loop.target, {5}, 512, timed=False).generate(
            [prompt], drafter, params, Coupled()
        )[0]
        assert (one.output_ids, one.accepted) == (alone.output_ids, alone.accepted)
        for (draft, row), (single, _) in zip(one.drafts, alone.drafts, strict=True):
            assert torch.equal(draft.tokens[row], single.tokens[0])
            assert torch.equal(draft.parents[row], single.parents[0])


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
@pytest.mark.parametrize(("architecture", "reads_host"), [("eagle", ("cpu",)), ("eagle3", ())])
def test_compiled_steps_draft_what_the_plain_ones_draft(
    architecture: str, reads_host: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round as one program, and its steps one by one. One sequence after another, so with more slots than
    at first; nothing is compiled after the warm-up."""
    monkeypatch.setattr(DynamicTree, "reads_host", reads_host)
    # As many as these trees need: every size is two programs, of seconds each.
    monkeypatch.setattr("methods.shared.eagle.steps._SIZES", (1, 4))
    head, tree = random_weights(HEADS[architecture]), DynamicTree(total_token=14, depth=3, top_k=4)
    prompts = [request([*PROMPT * 60, 7], 1), request(PROMPT[:3], 2), request([7, *PROMPT, 7, 7], 3)]
    made = []
    for target in (
        Target(model_of("llama"), linear="auto"),
        Target(copy.deepcopy(model_of("llama")), linear="auto", cache="auto", compiled=True),
    ):
        loop = DecodingLoop(target, (), 512, timed=False)
        drafter = bound(loop, folder_of(head, tmp_path), head.shape, tree)
        target.set_taps(drafter.taps)
        if "compiled" in target.steps.kinds:
            target.steps.choose(["dynamic"], 1)
            before = target.steps.num_programs
            drafter.warm_up(1)
            num_programs = target.steps.num_programs
            assert num_programs - before >= 4 if reads_host else num_programs == before + 1
            assert not target.remarks
        made.append([loop.generate([prompt], drafter, GREEDY, Coupled())[0] for prompt in prompts])
    assert target.steps.num_programs == num_programs
    for plain, compiled in zip(*made, strict=True):
        assert plain.output_ids == compiled.output_ids
        assert [paths(draft) for draft, _ in plain.drafts] == [paths(draft) for draft, _ in compiled.drafts]
    assert sum(sum(one.accepted) for one in made[0]) > 0


def test_features_of_pending_tokens_and_of_rejected_nodes_are_never_read(tmp_path: Path) -> None:
    """Poisoned rows past a sequence's own length change nothing."""
    head, loop = random_weights(HEADS["eagle3"]), loop_on()
    drafter = bound(
        loop, folder_of(head, tmp_path), head.shape, DynamicTree(total_token=14, depth=3, top_k=4)
    )

    class Poisoned(Eagle):
        def observe(self, outcome: Outcome) -> None:
            for states in outcome.taps:
                for row, committed in enumerate(outcome.committed):
                    states[row, len(committed) :] = 1e4
            super().observe(outcome)

    poisoned = Poisoned(architecture="eagle3", tree=drafter.tree, head=drafter.head)
    poisoned.bind(loop.target)
    prompts = [request(PROMPT, 1), request(PROMPT[:3], 2)]
    clean = loop.generate(prompts, drafter, GREEDY, Coupled())
    dirty = loop.generate(prompts, poisoned, GREEDY, Coupled())
    assert [one.accepted for one in clean] == [one.accepted for one in dirty]


def test_a_long_prompt_is_taken_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, loop = random_weights(HEADS["eagle3"]), loop_on()
    folder, tree = folder_of(head, tmp_path), DynamicTree(total_token=14, depth=3, top_k=4)
    prompt = request((PROMPT * 9)[:70])
    whole = loop.generate([prompt], bound(loop, folder, head.shape, tree), GREEDY, Coupled())[0]
    monkeypatch.setattr("methods.shared.eagle.growth._CHUNK", 16)
    chunked = loop.generate([prompt], bound(loop, folder, head.shape, tree), GREEDY, Coupled())[0]
    assert whole.accepted == chunked.accepted


class HostLooks(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    WAITS = (
        "aten._local_scalar_dense",
        "aten.nonzero",
        "aten.masked_select",
        "aten.equal",
        "aten.is_nonzero",
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rpartition(".")[0]
        if name in self.WAITS:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def host_looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    looks = HostLooks()
    for name in ("tolist", "numpy", "cpu", "item", "__bool__", "__int__", "__float__", "__index__"):
        original = getattr(torch.Tensor, name)

        def counted(
            self: Any, *args: Any, _name: str = name, _original: Any = original, **kwargs: Any
        ) -> Any:
            looks.seen[_name] += 1
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    with looks:
        yield looks.seen


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "tree", [DynamicTree(total_token=14, depth=3, top_k=4), StaticTree()], ids=["dynamic", "static"]
)
def test_the_host_waits_once_a_round(
    tree: TreePolicy, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, loop = random_weights(HEADS["eagle3"]), loop_on()
    drafter = bound(loop, folder_of(head, tmp_path), head.shape, tree)
    # The form of the acceptor that a GPU gets; on a CPU the host may ask as often as it likes.
    monkeypatch.setattr(acceptance, "walk", sweep)
    prompts = [request(PROMPT, number) for number in range(batch)]
    few, many = (replace(GREEDY, max_new_tokens=count) for count in (10, 40))
    looks, rounds = [], []
    for params in (few, many):
        with monkeypatch.context() as patched, host_looks(patched) as seen:
            made = loop.generate(prompts, drafter, params, Coupled())
        rounds.append(len({id(draft) for one in made for draft, _ in one.drafts}))
        looks.append(seen)
    assert rounds[1] > rounds[0]
    extra = looks[1] - looks[0]
    assert sum(extra.values()) == rounds[1] - rounds[0], extra


def test_a_wrong_reading_of_the_tapped_layers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is right about every token under one reading, and about none under the other."""
    loop = loop_on()
    folder = folder_of(random_weights(HEADS["eagle3"]), tmp_path)
    for right, given in (("input", "output"), ("output", "input")):
        drafter = Eagle(
            architecture="eagle3",
            tree=DynamicTree(total_token=6, depth=4, top_k=1),
            head=folder,
            aux_convention=given,
        )
        drafter.bind(loop.target)
        taps = drafter._taps
        readings = [right]

        def oracle(
            target: Any, _head: Any, ids: Any, states: Any, taps: Any = taps, by: Any = readings
        ) -> Any:
            read = [target.trace(ids, [replace(tap, point=by[-1])])[1][0] for tap in taps]
            best = target.trace(ids, [])[0][:, 1:].argmax(-1)
            same = all(torch.equal(a, b) for a, b in zip(read, states, strict=True))
            return best if same else (best + 1) % VOCAB

        monkeypatch.setattr(tap_check, "_guess", oracle)
        with pytest.raises(ConfigError, match=f"type aux_convention={right}"):
            drafter.check([PROMPT, PROMPT[:4], [1]])
        readings.append(given)
        drafter.check([PROMPT])


def test_without_a_head_the_user_is_told_what_to_type() -> None:
    drafter = Eagle(architecture="eagle3", tree=DynamicTree())
    with pytest.raises(ConfigError, match=r"methods\.NAME\.head=FOLDER.*`random`"):
        drafter.bind(loop_on().target)


def test_more_children_than_the_draft_vocabulary_has_are_refused(tmp_path: Path) -> None:
    head = random_weights(HEADS["eagle3, draft vocabulary"])
    with pytest.raises(ConfigError, match="10 children of a node, but the head's vocabulary has 9"):
        bound(loop_on(), folder_of(head, tmp_path), head.shape, DynamicTree())


def test_the_number_of_tapped_layers_must_fit_the_head(tmp_path: Path) -> None:
    head = random_weights(HEADS["eagle3"])
    tree = DynamicTree(total_token=6, depth=4, top_k=1)
    with pytest.raises(ConfigError, match="aux_layers: 2 layers"):
        bound(loop_on(), folder_of(head, tmp_path), head.shape, tree, aux_layers=(1, 2))
