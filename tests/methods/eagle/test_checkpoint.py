"""EAGLE heads on disk: one network under every family's names, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from harness.config import ConfigError
from methods.shared.eagle.checkpoint import LoadedHead, TargetFacts, load_head, random_head, save_head
from methods.shared.eagle.heads.architectures import new_head
from methods.shared.eagle.heads.base import Architecture, DraftHead, HeadShape

TARGET = TargetFacts(hidden_size=16, vocab_size=48, num_layers=8)
LIKE = SimpleNamespace(
    num_attention_heads=4, num_key_value_heads=2, head_dim=4, intermediate_size=24, hidden_size=16
)
BOTH = pytest.mark.parametrize("architecture", ["eagle", "eagle3"])
FIXTURES = Path(__file__).parents[4] / "shared/fixtures/public/models"
Tensors = dict[str, Tensor]
Config = dict[str, Any]


def made(architecture: Architecture, *, seed: int = 0, draft_vocab_size: int | None = 20) -> DraftHead:
    return random_head(
        architecture=architecture,
        target=TARGET,
        like=LIKE,
        draft_vocab_size=draft_vocab_size,
        dtype=torch.float32,
        device=torch.device("cpu"),
        seed=seed,
    ).head


def shaped(architecture: Architecture, **fields: Any) -> DraftHead:
    """A head with other fields than those of `made`, its norms not all ones."""
    shape = HeadShape(**{**vars(made(architecture).shape), **fields})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        head = new_head(shape)
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    if architecture == "eagle3" and shape.draft_vocab_size < shape.vocab_size:
        head.d2t.copy_(torch.arange(shape.draft_vocab_size))
    return head.eval().requires_grad_(False)


def loaded(folder: Path | str, architecture: Architecture, **options: Any) -> LoadedHead:
    settings: dict[str, Any] = {
        "revision": None,
        "target": TARGET,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    return load_head(str(folder), architecture=architecture, **{**settings, **options})


def write(folder: Path, config: Config, tensors: Tensors) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def saved(folder: Path, head: DraftHead, edit: Callable[[Config, Tensors], object] | None = None) -> Path:
    """The head in the official layout, after `edit` of its config.json and tensors."""
    save_head(head, folder, aux_layers=None, card={})
    config: Config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    if edit:
        edit(config, tensors)
    return write(folder, config, tensors)


def output(head: DraftHead) -> Tensor:
    """The output of a causal forward over five rows, with all that comes before and after the layer."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mixed = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return mixed.transpose(1, 2)

    generator = torch.Generator().manual_seed(5)
    embedded = torch.randn(1, 5, head.shape.hidden_size, generator=generator)
    features = torch.randn(1, 5, head.shape.feature_size, generator=generator)
    states = head(embedded, head.project(features), torch.arange(5)[None], attend)
    normed = head.normed(states)
    return head.lm_head(normed) if head.shape.own_lm_head else normed


def assert_same(one: DraftHead, other: DraftHead) -> None:
    assert one.shape == other.shape
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name
    assert torch.equal(output(one), output(other))


def renamed(tensors: Tensors, *pairs: tuple[str, str]) -> Tensors:
    for old, new in pairs:
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def stacked(tensors: Tensors, layer: str) -> Tensors:
    """As vLLM holds them: one matrix for projections that read the same."""
    rest = dict(tensors)
    for kind in ("weight", "bias"):
        for names, whole in ((("q", "k", "v"), "self_attn.qkv"), (("gate", "up"), "mlp.gate_up")):
            part = whole.split(".")[0]
            keys = [f"{layer}.{part}.{name}_proj.{kind}" for name in names]
            if keys[0] in rest:
                rest[f"{layer}.{whole}_proj.{kind}"] = torch.cat([rest.pop(key) for key in keys])
    return rest


def under_model(tensors: Tensors) -> Tensors:
    apart = ("lm_head", "draft_id_to_target_id", "hot_token_id")
    return {name if name.startswith(apart) else f"model.{name}": tensor for name, tensor in tensors.items()}


def as_speculators(config: Config, tensors: Tensors, architecture: Architecture) -> tuple[Config, Tensors]:
    outer = {"speculators_model_type": architecture, "speculators_config": {"algorithm": architecture}}
    if architecture == "eagle":
        tensors = renamed(tensors, ("fc.", "fusion_fc."), ("layers.0.", "transformer."))
        return {**outer, "transformer_layer_config": config, "fusion_bias": config.pop("bias")}, tensors
    del config["bias"]
    outer["draft_vocab_size"] = config.pop("draft_vocab_size")
    tensors = renamed(tensors, ("midlayer.", "layers.0."))
    tensors |= {"verifier_norm.weight": torch.ones(16), "verifier_lm_head.weight": torch.ones(20, 16)}
    return {**outer, "transformer_layer_config": config, "hidden_size": 4096}, tensors


def as_vllm(config: Config, tensors: Tensors, architecture: Architecture) -> tuple[Config, Tensors]:
    tensors = renamed(tensors, ("midlayer.", "layers.0."), ("d2t", "draft_id_to_target_id"))
    tensors.pop("t2d", None)
    return {"model_type": "eagle", "model": config}, under_model(stacked(tensors, "layers.0"))


def as_sglang(config: Config, tensors: Tensors, architecture: Architecture) -> tuple[Config, Tensors]:
    tensors.pop("t2d", None)
    if "d2t" in tensors:
        offsets = tensors.pop("d2t")
        tensors["hot_token_id"] = offsets + torch.arange(len(offsets))
    tensors["midlayer.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    return {**config, "architectures": ["LlamaForCausalLMEagle3"]}, under_model(tensors)


def as_sglang_by_frequency(
    config: Config, tensors: Tensors, architecture: Architecture
) -> tuple[Config, Tensors]:
    """Draft ids ranked by how frequent their tokens are, and not in the order of the target's ids."""
    config, tensors = as_sglang(config, tensors, architecture)
    if "hot_token_id" in tensors:
        order = torch.randperm(len(tensors["hot_token_id"]), generator=torch.Generator().manual_seed(3))
        for name in ("hot_token_id", "lm_head.weight"):
            tensors[name] = tensors[name][order]
    return config, tensors


def as_specforge(config: Config, tensors: Tensors, architecture: Architecture) -> tuple[Config, Tensors]:
    ids = {"eagle_aux_hidden_state_layer_ids": [1, 3, 4], "use_aux_hidden_state": True}
    return {**config, "eagle_config": ids}, tensors


@BOTH
@pytest.mark.parametrize(
    ("family", "name"),
    [
        (as_speculators, "speculators"),
        (as_vllm, "vLLM"),
        (as_sglang, "SGLang"),
        (as_sglang_by_frequency, "SGLang"),
        (as_specforge, "SpecForge"),
        (lambda config, tensors, _: (config, tensors), "SafeAILab"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_same_weights_under_every_familys_names_are_the_same_head(
    tmp_path: Path, architecture: Architecture, family: Any, name: str
) -> None:
    if (architecture, name) == ("eagle", "SpecForge"):
        pytest.skip("SpecForge trains EAGLE-3 only")
    head = shaped(architecture, qkv_bias=True, fc_bias=architecture == "eagle", rope_theta=5e5)
    folder = saved(tmp_path / "head", head)
    config = json.loads((folder / "config.json").read_text())
    write(folder, *family(config, load_file(folder / "model.safetensors"), architecture))
    found = loaded(folder, architecture)
    assert_same(found.head, head)
    assert found.card["format"] == name or (architecture, name) == ("eagle", "SGLang")


@BOTH
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"qk_norm": True, "o_bias": True, "mlp_bias": True, "own_embedding": True},
        {"rms_norm_eps": 1e-5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}, "head_dim": 8},
    ],
    ids=["plain", "all modules", "numbers"],
)
def test_what_is_saved_is_loaded(tmp_path: Path, architecture: Architecture, fields: dict[str, Any]) -> None:
    head = shaped(architecture, **fields)
    save_head(head, tmp_path / "new", aux_layers=(2, 4, 5), card={"training": {"steps": 7}, "other": 1})
    found = loaded(tmp_path / "new", architecture)
    assert_same(found.head, head)
    assert found.aux_layers == (2, 4, 5)
    assert found.card["training"] == {"steps": 7}
    assert "other" not in found.card
    json.dumps(found.card)


@pytest.mark.parametrize(
    "fields",
    [
        {"fc_norm": True, "norm_output": True},
        {"norm_before_fc": True, "norm_before_residual": True},
        {"num_taps": 1},
        {"fc_bias": True},
        {"draft_vocab_size": 48},
        {"draft_vocab_size": 48, "own_lm_head": False},
    ],
    ids=lambda fields: "+".join(fields),
)
def test_every_variant_of_eagle3_survives_the_disk(tmp_path: Path, fields: dict[str, Any]) -> None:
    head = shaped("eagle3", **fields)
    assert_same(loaded(saved(tmp_path / "head", head), "eagle3").head, head)


def test_official_files_hold_official_names_only(tmp_path: Path) -> None:
    names = load_file(saved(tmp_path / "a", made("eagle3")) / "model.safetensors").keys()
    assert {
        "fc.weight",
        "norm.weight",
        "lm_head.weight",
        "d2t",
        "t2d",
        "midlayer.hidden_norm.weight",
    } <= names
    assert all(name.split(".")[0] in {"fc", "norm", "lm_head", "d2t", "t2d", "midlayer"} for name in names)
    names = load_file(saved(tmp_path / "b", made("eagle")) / "model.safetensors").keys()
    assert all(name.startswith(("fc.", "layers.0.")) for name in names)


def test_a_head_of_another_width_than_the_targets_brings_its_own_embedding(tmp_path: Path) -> None:
    head = shaped("eagle3", target_hidden_size=12, own_embedding=True)
    target = TargetFacts(hidden_size=12, vocab_size=48, num_layers=8)
    folder = saved(tmp_path / "head", head)
    assert_same(loaded(folder, "eagle3", target=target).head, head)
    saved(folder, head, lambda _, tensors: tensors.pop("embed_tokens.weight"))
    with pytest.raises(ConfigError, match=r"missing embed_tokens\.weight \[48, 16\]"):
        loaded(folder, "eagle3", target=target)
    saved(folder, head, lambda config, _: config.pop("target_hidden_size"))
    with pytest.raises(
        ConfigError, match=r"fc\.weight has shape \[16, 36\]; its width must be a multiple of 16"
    ):
        loaded(folder, "eagle3", target=target)


def test_parameters_get_the_dtype_and_buffers_keep_theirs(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    head = loaded(saved(tmp_path / "head", made("eagle3")), "eagle3", dtype=torch.bfloat16).head
    assert {parameter.dtype for parameter in head.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in head.parameters())
    assert head.d2t.dtype == torch.int64
    assert torch.equal(head.rotary.inv_freq, made("eagle3").rotary.inv_freq)
    assert head.rotary.inv_freq.dtype == torch.float32
    assert not head.training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_head_does_not_need_its_files_any_longer(tmp_path: Path) -> None:
    folder = saved(tmp_path / "head", made("eagle"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    head = loaded(folder, "eagle").head
    before = output(head)
    with (folder / "pytorch_model.bin").open("r+b") as file:
        file.write(bytes((folder / "pytorch_model.bin").stat().st_size))
    assert torch.equal(output(head), before)


def test_the_card_names_the_weights_by_their_hash(tmp_path: Path) -> None:
    one = loaded(saved(tmp_path / "a", made("eagle3")), "eagle3").card
    again = loaded(saved(tmp_path / "b", made("eagle3")), "eagle3").card
    other = loaded(saved(tmp_path / "c", made("eagle3", seed=1)), "eagle3").card
    assert len(one["sha256"]) == 16
    assert one["sha256"] == again["sha256"] != other["sha256"]
    assert (one["path"], one["revision"]) == (str(tmp_path / "a"), None)
    assert (one["draft_vocab_size"], one["rope_theta"], one["norm_output"]) == (20, 10000.0, False)
    assert one["num_parameters"] == sum(parameter.numel() for parameter in made("eagle3").parameters())


# Files


def test_shards_are_put_together_and_safetensors_are_preferred(tmp_path: Path) -> None:
    head = made("eagle3")
    folder = saved(tmp_path / "head", head)
    tensors = load_file(folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    assert_same(loaded(folder, "eagle3").head, head)
    (folder / "model.safetensors").unlink()
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {name: files[number % 2] for number, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert_same(loaded(folder, "eagle3").head, head)
    (folder / files[1]).unlink()
    with pytest.raises(ConfigError, match=f"{files[1]} cannot be read"):
        loaded(folder, "eagle3")


@pytest.mark.parametrize("shard", ["evil.bin", "../model.safetensors", "/tmp/model.safetensors"])
def test_an_index_cannot_name_a_pickle_or_a_file_elsewhere(tmp_path: Path, shard: str) -> None:
    folder = saved(tmp_path / "head", made("eagle3"))
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"fc.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"names the file .* Allowed: files of the same folder that"):
        loaded(folder, "eagle3")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_cut_file_is_named(tmp_path: Path, name: str) -> None:
    head = made("eagle3")
    folder = saved(tmp_path / "head", head)
    if name.endswith(".bin"):
        torch.save(load_file(folder / "model.safetensors"), folder / name)
        (folder / "model.safetensors").unlink()
        assert_same(loaded(folder, "eagle3").head, head)
    whole = (folder / name).read_bytes()
    for size in (0, 20, len(whole) // 2, len(whole) - 10):
        (folder / name).write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=rf"head=.*{name} cannot be read; is it whole\?"):
            loaded(folder, "eagle3")


def test_a_pickle_that_is_more_than_tensors_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "head", made("eagle"))
    (folder / "model.safetensors").unlink()
    torch.save({"fc.weight": torch.ones(2), "step": 3}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin holds more than tensors: step"):
        loaded(folder, "eagle")
    torch.save({"fc.weight": print}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin cannot be read"):
        loaded(folder, "eagle")


def test_what_is_not_a_heads_folder_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        loaded(tmp_path, "eagle")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json is not a JSON object"):
        loaded(tmp_path, "eagle")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"has no weights.*model\.safetensors, pytorch_model\.bin"):
        loaded(tmp_path, "eagle")
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(ConfigError, match="has no weight_map"):
        loaded(tmp_path, "eagle")
    with pytest.raises(ConfigError, match="is a folder; leave it out"):
        loaded(tmp_path, "eagle", revision="main")
    with pytest.raises(ConfigError, match=r"no such folder\. Allowed: a folder, a hub id ORG/NAME, or one"):
        loaded(tmp_path / "absent", "eagle")


# The hub


class Answer(Exception):
    """Stands for whatever the http library raises."""


def hub(monkeypatch: pytest.MonkeyPatch, error: Exception | None, folder: Path | None) -> list[Any]:
    """A hub that raises `error`, else has the files of `folder`, which also are an earlier download."""
    asked: list[Any] = []

    def info(self: Any, path: str, **options: Any) -> Any:
        if error is not None:
            raise error
        names = [file.name for file in folder.iterdir()] if folder else []
        return SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename=name) for name in names])

    def download(path: str, **options: Any) -> str:
        asked.append(options)
        if folder is None:
            raise hub_errors.LocalEntryNotFoundError("nothing here")
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def refusal(kind: Any) -> Exception:
    error: Exception = kind.__new__(kind)
    return error


def test_of_the_hub_only_configuration_and_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "commit", made("eagle3"))
    asked = hub(monkeypatch, None, folder)
    card = loaded("org/head", "eagle3", revision="v1").card
    assert (card["path"], card["revision"]) == ("org/head", "abc")
    assert asked[0]["allow_patterns"] == [
        *("config.json", "card.json", "prompts.npy", "adapter_config.json", "adapter_model.safetensors"),
        "model*.safetensors*",
    ]
    assert asked[0]["revision"] == "abc"


def test_without_the_hub_an_earlier_download_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = hub(monkeypatch, Answer("no route"), saved(tmp_path / "c0ffee", made("eagle3")))
    assert loaded("org/head", "eagle3").card["revision"] == "c0ffee"
    assert asked[0]["local_files_only"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refusal(hub_errors.GatedRepoError), "gated on the hub.*methods.NAME.head=FOLDER"),
        (refusal(hub_errors.RepositoryNotFoundError), "nor a public model.*methods.NAME.head=FOLDER"),
        (refusal(hub_errors.RevisionNotFoundError), "revision=v9.*no such revision"),
        (Answer("no route"), r"cannot be reached \(Answer: no route\).*methods.NAME.head=FOLDER"),
    ],
    ids=["gated", "missing", "revision", "unreachable"],
)
def test_what_the_hub_refuses_is_explained(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    hub(monkeypatch, error, None)
    with pytest.raises(ConfigError, match=message):
        loaded("org/head", "eagle3", revision="v9")


# Configurations


def edited(config: Config) -> Callable[[Config, Tensors], object]:
    """Replace keys of config.json; None deletes one."""

    def edit(given: Config, _: Tensors) -> None:
        given.update(config)
        for key, value in config.items():
            if value is None:
                del given[key]

    return edit


@pytest.mark.parametrize(
    ("config", "theta", "scaling"),
    [
        ({"rope_theta": None}, 10000.0, None),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}, 7.0, None),
        ({"rope_theta": 9, "rope_scaling": {"type": "linear", "factor": 2.0}}, 9.0, "linear"),
        (
            {"rope_theta": None, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            10000.0,
            "dynamic",
        ),
    ],
)
def test_both_spellings_of_the_rotary_base_are_read_and_its_absence_is_10000(
    tmp_path: Path, config: Config, theta: float, scaling: str | None
) -> None:
    head = loaded(saved(tmp_path / "head", made("eagle3"), edited(config)), "eagle3").head
    assert head.shape.rope_theta == head.rotary.config.rope_parameters["rope_theta"] == theta
    assert head.rotary.rope_type == (scaling or "default")


def test_a_silent_configuration_means_as_many_kv_heads_and_the_quotient_as_head_dim(tmp_path: Path) -> None:
    head = shaped("eagle", num_kv_heads=4)
    config = {"num_key_value_heads": None, "head_dim": None, "num_hidden_layers": 40}
    assert_same(loaded(saved(tmp_path / "head", head, edited(config)), "eagle").head, head)


@pytest.mark.parametrize("said", [8, 2, 80])
def test_a_head_dim_of_the_configuration_yields_to_tensors_that_agree(tmp_path: Path, said: int) -> None:
    head = made("eagle3")
    assert_same(loaded(saved(tmp_path / "head", head, edited({"head_dim": said})), "eagle3").head, head)


def test_flags_default_to_false_and_the_caller_overrides_them(tmp_path: Path) -> None:
    head = made("eagle3")
    folder = saved(tmp_path / "head", head)
    write(
        folder,
        *as_speculators(
            json.loads((folder / "config.json").read_text()),
            load_file(folder / "model.safetensors"),
            "eagle3",
        ),
    )
    assert not loaded(folder, "eagle3").head.shape.norm_before_residual
    assert not loaded(folder, "eagle3").head.shape.norm_output
    shape = loaded(folder, "eagle3", norm_output=True, norm_before_residual=True).head.shape
    assert (shape.norm_output, shape.norm_before_residual) == (True, True)
    saved(folder, shaped("eagle3", norm_output=True))
    assert loaded(folder, "eagle3").head.shape.norm_output
    assert not loaded(folder, "eagle3", norm_output=False).card["norm_output"]


@pytest.mark.parametrize("place", ["top", "eagle_config", "model"])
def test_tapped_layers_are_read_wherever_they_stand(tmp_path: Path, place: str) -> None:
    ids = {"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}
    folder = saved(tmp_path / "head", made("eagle3"))
    assert loaded(folder, "eagle3").aux_layers is None
    config = json.loads((folder / "config.json").read_text())
    whole = {"top": {**config, **ids}, "eagle_config": {**config, "eagle_config": ids}}
    whole["model"] = {"model_type": "eagle", "model": whole["eagle_config"]}
    (folder / "config.json").write_text(json.dumps(whole[place]))
    assert loaded(folder, "eagle3").aux_layers == (1, 3, 4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 32}, r"fc\.weight has shape \[16, 48\]; config\.json says hidden_size=32"),
        (
            {"intermediate_size": 9},
            r"midlayer\.mlp\.gate_proj\.weight has shape \[24, 16\].*intermediate_size=9",
        ),
        ({"num_attention_heads": 2, "head_dim": None}, r"k_proj\.weight.*num_key_value_heads=16"),
        ({"num_key_value_heads": None}, r"k_proj\.weight has shape \[8, 32\].*num_key_value_heads=16"),
        ({"num_attention_heads": None}, r"says nothing of num_attention_heads"),
        ({"draft_vocab_size": 21}, r"lm_head\.weight has shape \[20, 16\].*draft_vocab_size=21"),
        ({"vocab_size": None}, r"embed_tokens\.weight is missing; config\.json says nothing of vocab_size"),
        (
            {"attention_bias": True},
            r"q_proj\.bias is missing; config\.json says qkv_bias/attention_bias=true",
        ),
        ({"mlp_bias": True}, r"gate_proj\.bias is missing.*mlp_bias=true"),
        ({"fc_norm": True}, r"fc_norm\.0\.weight is missing.*fc_norm=true"),
        ({"norm_before_fc": True}, r"input_norm\.weight is missing.*norm_before_fc=true"),
        (
            {"eagle_aux_hidden_state_layer_ids": [1, 2]},
            r"reads 3 states of width 16.*names 2 layers: \[1, 2\]",
        ),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2, 9]}, r"taps layers \[9\], the target has 8"),
        ({"hidden_size": "wide"}, r"config\.json cannot be used: hidden_size='wide'"),
        ({"hidden_act": "swosh"}, r"does not have \(hidden_act=swosh"),
        ({"rope_scaling": {"rope_type": "mrope"}}, r"does not have .*mrope"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"does not have .*linear"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotates only part of a head"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5}}}, "by layer type"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(
    tmp_path: Path, config: Config, message: str
) -> None:
    folder = saved(tmp_path / "head", made("eagle3"), edited(config))
    with pytest.raises(ConfigError, match=message):
        loaded(folder, "eagle3")


def test_a_bias_of_fc_that_the_official_code_would_leave_random_is_missed(tmp_path: Path) -> None:
    folder = saved(tmp_path / "head", made("eagle"), edited({"bias": None}))
    with pytest.raises(ConfigError, match=r'fc\.bias is missing.*random.*"bias": false'):
        loaded(folder, "eagle")
    saved(folder, made("eagle"), edited({"bias": True}))
    with pytest.raises(ConfigError, match=r'fc\.bias is missing.*"bias": false'):
        loaded(folder, "eagle")
    with_bias = shaped("eagle", fc_bias=True)
    assert_same(loaded(saved(folder, with_bias, edited({"bias": None})), "eagle").head, with_bias)
    saved(folder, with_bias, edited({"bias": False}))
    with pytest.raises(ConfigError, match=r"fc\.bias has shape \[16\]; config\.json says bias=false"):
        loaded(folder, "eagle")


def test_eagle3_has_no_bias_of_fc_whatever_an_official_configuration_says(tmp_path: Path) -> None:
    for bias in (True, None):
        folder = saved(tmp_path / "head", made("eagle3"), edited({"bias": bias}))
        assert not loaded(folder, "eagle3").head.shape.fc_bias


# Tensors


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("norm.weight"), r"missing norm\.weight \[16\]"),
        (lambda t: t.pop("fc.weight"), r"missing fc\.weight \[16, 48\]"),
        (
            lambda t: t.pop("midlayer.self_attn.q_proj.weight"),
            r"missing midlayer\.self_attn\.q_proj\.weight \[16, 32\]",
        ),
        (
            lambda t: t.pop("midlayer.mlp.gate_proj.weight"),
            r"missing midlayer\.mlp\.gate_proj\.weight \[24, 16\]",
        ),
        (lambda t: t.pop("lm_head.weight"), r"missing lm_head\.weight \[20, 16\]"),
        (lambda t: t.update(odd=torch.ones(3)), r"unexpected odd \[3\]"),
        (lambda t: t.update({"norm.weight": torch.ones(3)}), r"norm\.weight \[3\] in place of \[16\]"),
        (
            lambda t: t.update({"fc.weight": torch.ones(3)}),
            r"fc\.weight has shape \[3\]; a matrix is expected",
        ),
        (
            lambda t: t.update({"midlayer.self_attn.q_proj.weight": torch.ones(16, 20)}),
            r"q_proj\.weight has shape \[16, 20\]; at hidden_size 16",
        ),
        (
            lambda t: t.update({"layers.1.mlp.up_proj.weight": torch.ones(3)}),
            r"more than one layer.*layers\.1\.mlp",
        ),
        (lambda t: t.update({"model.norm.weight": torch.ones(16)}), r"norm\.weight under another name too"),
        (
            lambda t: t.update({"midlayer.self_attn.qkv_proj.weight": torch.ones(3, 32)}),
            r"unexpected midlayer\.self_attn\.qkv_proj\.weight \[3, 32\]",
        ),
        (
            lambda t: t.update({"fc_norm.0.weight": torch.ones(16), "input_norm.weight": torch.ones(48)}),
            "one or the other",
        ),
    ],
)
def test_every_tensor_must_be_known_and_in_place(tmp_path: Path, edit: Any, message: str) -> None:
    folder = saved(tmp_path / "head", made("eagle3"), lambda _, tensors: edit(tensors))
    with pytest.raises(ConfigError, match=message):
        loaded(folder, "eagle3")


def test_eagle1_has_no_norms_and_no_head_of_its_own(tmp_path: Path) -> None:
    extra = {"lm_head.weight": torch.ones(48, 16), "layers.0.input_layernorm.weight": torch.ones(16)}
    folder = saved(tmp_path / "head", made("eagle"), lambda _, tensors: tensors.update(extra))
    message = r"unexpected layers\.0\.input_layernorm\.weight \[16\]; unexpected lm_head\.weight \[48, 16\]"
    with pytest.raises(ConfigError, match=message):
        loaded(folder, "eagle")


@BOTH
def test_the_other_architecture_is_recognised_and_the_method_to_type_is_told(
    tmp_path: Path, architecture: Architecture
) -> None:
    other: Architecture = "eagle" if architecture == "eagle3" else "eagle3"
    remedy = "method=eagle3" if architecture == "eagle3" else "method=eagle2"
    folder = saved(tmp_path / "head", made(architecture))
    with pytest.raises(
        ConfigError, match=rf"q_proj\.weight \[16, (16|32)\] at hidden_size 16. Type {remedy}"
    ):
        loaded(folder, other)


@BOTH
def test_a_head_for_another_target_is_refused(tmp_path: Path, architecture: Architecture) -> None:
    folder = saved(tmp_path / "head", made(architecture))
    wide = TargetFacts(hidden_size=576, vocab_size=48, num_layers=8)
    with pytest.raises(
        ConfigError, match=r"fc\.weight \[16, (32|48)\] is for a target of hidden size 16, this one has 576"
    ):
        loaded(folder, architecture, target=wide)
    talkative = TargetFacts(hidden_size=16, vocab_size=50, num_layers=8)
    with pytest.raises(
        ConfigError, match=r"config\.json is for a target with a vocabulary of 48, this one has 50"
    ):
        loaded(folder, architecture, target=talkative)
    saved(folder, shaped(architecture, own_embedding=True))
    with pytest.raises(
        ConfigError, match=r"embed_tokens\.weight \[48, 16\] is for a target with a vocabulary"
    ):
        loaded(folder, architecture, target=talkative)


# The vocabulary map


def test_d2t_is_an_offset_and_needs_no_t2d(tmp_path: Path) -> None:
    head = made("eagle3")
    ids = head.d2t + torch.arange(20)
    assert (ids.diff() > 0).all()
    assert int(ids.max()) < 48
    folder = saved(tmp_path / "head", head, lambda _, tensors: tensors.pop("t2d"))
    assert_same(loaded(folder, "eagle3").head, head)


def changed(key: str, index: int, value: int) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensors[key][index] = value

    return edit


def absolute(tensors: Tensors) -> None:
    tensors["d2t"] += torch.arange(20)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("d2t"), r"missing d2t \[20\]"),
        (changed("d2t", 3, 99), r"corrupted: d2t\[3\] makes draft id 3 the target id 102"),
        (changed("d2t", 0, -1), r"corrupted: d2t\[0\] makes draft id 0 the target id -1"),
        (changed("d2t", 5, -1), r"corrupted: d2t\[5\]"),
        (absolute, "corrupted"),
        (lambda t: t["t2d"].fill_(False), "t2d marks 0 target ids, the draft vocabulary has 20"),
        (lambda t: t.update(t2d=t["t2d"].roll(1)), "corrupted"),
        (lambda t: t.update(t2d=t["t2d"][:-1]), r"t2d has shape \[47\] in place of \[48\]"),
        (lambda t: t.update(d2t=t["d2t"][:-1]), r"d2t has shape \[19\] in place of \[20\]"),
    ],
    ids=[
        "absent",
        "beyond",
        "negative",
        "falling",
        "absolute ids",
        "empty t2d",
        "other t2d",
        "short t2d",
        "short",
    ],
)
def test_a_corrupted_vocabulary_map_is_refused(tmp_path: Path, edit: Any, message: str) -> None:
    folder = saved(tmp_path / "head", made("eagle3"), lambda _, tensors: edit(tensors))
    with pytest.raises(ConfigError, match=message):
        loaded(folder, "eagle3")


def test_a_map_over_the_whole_vocabulary_is_ignored(tmp_path: Path) -> None:
    head = made("eagle3", draft_vocab_size=None)
    folder = saved(tmp_path / "head", head)
    assert "d2t" not in load_file(folder / "model.safetensors")
    saved(folder, head, lambda _, tensors: tensors.update(d2t=torch.full((48,), 5)))
    assert_same(loaded(folder, "eagle3").head, head)


# Random heads


@BOTH
def test_a_random_head_is_its_seeds_and_leaves_torchs_random_state_alone(architecture: Architecture) -> None:
    before = torch.get_rng_state()
    one, again, other = made(architecture), made(architecture), made(architecture, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(one, again)
    assert not torch.equal(one.fc.weight, other.fc.weight)
    shape = one.shape
    assert (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.intermediate_size) == (4, 2, 4, 24)


def test_a_random_draft_vocabulary_fits_in_the_targets() -> None:
    with pytest.raises(ConfigError, match="draft_vocab_size=49: at most the target's, 48"):
        made("eagle3", draft_vocab_size=49)
    assert made("eagle", draft_vocab_size=20).shape.draft_vocab_size == 48


# Checkpoints of the official code


@pytest.mark.parametrize(
    ("name", "architecture", "target"),
    [
        ("llama8-eagle2", "eagle", TargetFacts(hidden_size=64, vocab_size=512, num_layers=8)),
        ("llama8-eagle3", "eagle3", TargetFacts(hidden_size=64, vocab_size=512, num_layers=8)),
        ("tiny16x2-eagle2", "eagle", TargetFacts(hidden_size=16, vocab_size=16, num_layers=2)),
        ("tiny16x7-eagle3", "eagle3", TargetFacts(hidden_size=16, vocab_size=16, num_layers=7)),
    ],
)
def test_heads_trained_with_the_official_code_load_and_survive_saving(
    tmp_path: Path, name: str, architecture: Architecture, target: TargetFacts
) -> None:
    if not FIXTURES.is_dir():
        pytest.skip(f"no official checkpoints at {FIXTURES}")
    found = loaded(FIXTURES / name, architecture, target=target)
    shape, card = found.head.shape, found.card
    assert card["format"] == "SafeAILab"
    assert shape.rope_theta == (5e5 if name == "llama8-eagle2" else 1e4)
    assert shape.own_embedding == (architecture == "eagle")
    assert shape.fc_bias == (name == "tiny16x2-eagle2")
    assert shape.draft_vocab_size == {"llama8-eagle3": 256, "tiny16x7-eagle3": 11}.get(name, shape.vocab_size)
    save_head(found.head, tmp_path / "copy", aux_layers=None, card={})
    assert_same(loaded(tmp_path / "copy", architecture, target=target).head, found.head)
