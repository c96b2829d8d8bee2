"""Load and save EAGLE heads: checkpoints of any family are read, the official format is written.

The official loader takes the tensors that fit and leaves the rest random. Here every tensor must be present
and known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.config import ConfigError
from harness.system.files import write_json
from methods.shared.eagle.config import HeadConfig, parse_config
from methods.shared.eagle.files import official_name, read_files
from methods.shared.eagle.heads.architectures import HEADS, head_shape, new_head
from methods.shared.eagle.heads.base import Architecture, DraftHead, HeadShape
from methods.shared.eagle.heads.filling import MAPS, blank, filled, refuse_differences, vocabulary_map

_SWITCHES = ("qkv_bias", "mlp_bias", "norm_before_residual", "norm_output", "fc_norm", "norm_before_fc")
"""Fields of `HeadShape` that have the same name in a config.json."""


@dataclass(frozen=True, kw_only=True)
class TargetFacts:
    """The facts about a target that a head must fit."""

    hidden_size: int
    vocab_size: int
    num_layers: int


@dataclass(frozen=True, kw_only=True)
class LoadedHead:
    """A head that is ready to run (eval, no gradients)."""

    head: DraftHead
    """Its parameters have the requested dtype; `d2t` and the rotary frequencies keep their own."""
    aux_layers: tuple[int, ...] | None
    """The tapped blocks as config.json names them, in whichever convention; None where it does not."""
    card: dict[str, Any]
    """JSON types: path and format; revision, sha256 and `training` of a checkpoint (see `HeadFiles`), or the
    seed of a random head; num_parameters; sizes, rotary base and switches from `HeadShape`."""


def load_head(
    path: str,
    *,
    revision: str | None,
    architecture: Architecture,
    target: TargetFacts,
    dtype: torch.dtype,
    device: torch.device,
    norm_output: bool | None = None,
    norm_before_residual: bool | None = None,
) -> LoadedHead:
    """Load the head in the folder, or at the hub id, `path`.

    norm_output, norm_before_residual: see `HeadShape`; None takes the value in config.json, else false.

    Raises:
        ConfigError: there is no such head, it cannot be read, is incomplete, contradicts itself, has another
            architecture or was made for another target.
    """
    where = f"head={path}"
    files = read_files(path, revision, where)
    tensors, config = files.tensors, parse_config(files.config, where)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shape = head_shape(
        config,
        shapes,
        where,
        asked=architecture,
        norm_output=norm_output,
        norm_before_residual=norm_before_residual,
    )
    if shape.architecture != architecture:
        kind = HEADS[shape.architecture]
        query = list(shapes["layer.self_attn.q_proj.weight"])
        raise ConfigError(
            f"{where}: is an {kind.title} head, by its self_attn.q_proj.weight {query} at hidden_size "
            f"{shape.hidden_size}. Type method={kind.method}."
        )
    head = blank(lambda: new_head(shape), shape, where)
    _refuse_misfit(head, config, target, where)
    if head.has_vocabulary_map:
        maps = {name: tensors.pop(name) for name in MAPS if name in tensors}
        _sort_ranked_map(maps, tensors)
        tensors["d2t"] = vocabulary_map(maps, shape.draft_vocab_size, shape.vocab_size, where)
    refuse_differences(head, tensors, where, lambda name: official_name(name, head.official_layer))
    head = filled(head, tensors, dtype, device)
    return LoadedHead(head=head, aux_layers=config.aux_layers, card={**files.card, **_describe(head)})


def random_head(
    *,
    architecture: Architecture,
    target: TargetFacts,
    like: Any,
    draft_vocab_size: int | None,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
) -> LoadedHead:
    """A head with random weights and the sizes of a real one for `target`, to measure time alone.

    like: a transformers configuration whose attention heads and MLP the layer gets (usually the target's).
    draft_vocab_size: of a head with a vocabulary of its own; None is the target's whole vocabulary. Torch's
    random state is left as it was.

    Raises:
        ConfigError: the draft vocabulary is larger than the target's.
    """
    kind = HEADS[architecture]
    size = (draft_vocab_size if kind.has_vocabulary_map else None) or target.vocab_size
    if size > target.vocab_size:
        raise ConfigError(f"draft_vocab_size={size}: at most the target's, {target.vocab_size}.")
    num_heads = like.num_attention_heads
    common = {
        "architecture": architecture,
        "hidden_size": target.hidden_size,
        "intermediate_size": like.intermediate_size,
        "num_heads": num_heads,
        "num_kv_heads": getattr(like, "num_key_value_heads", None) or num_heads,
        "head_dim": getattr(like, "head_dim", None) or like.hidden_size // num_heads,
        "vocab_size": target.vocab_size,
        "target_hidden_size": target.hidden_size,
    }
    shape = kind.random_shape(common, size)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the generators of all accelerators too.
        torch.default_generator.manual_seed(seed)
        sharp = new_head(shape)
        sharp.sharpen()
        tensors = sharp.state_dict()
        if size < target.vocab_size:
            tensors["d2t"] = torch.randperm(target.vocab_size)[:size].sort().values - torch.arange(size)
    head = filled(blank(lambda: new_head(shape), shape, "head=random"), tensors, dtype, device)
    card = {"path": None, "format": "random", "seed": seed, **_describe(head)}
    return LoadedHead(head=head, aux_layers=None, card=card)


def save_head(
    head: DraftHead, folder: Path, *, aux_layers: Sequence[int] | None, card: Mapping[str, Any]
) -> None:
    """Write config.json, model.safetensors and card.json in SafeAILab's layout, which all families read.

    aux_layers: go into config.json. card: JSON types; `load_head` passes its `training` on.
    """
    shape = head.shape
    tensors = {
        official_name(name, head.official_layer): tensor.detach().cpu().contiguous()
        for name, tensor in head.state_dict().items()
    }
    write_files(folder, with_vocabulary_maps(tensors, shape), official_config(head, aux_layers), card)


def with_vocabulary_maps(tensors: Mapping[str, Tensor], shape: HeadShape) -> dict[str, Tensor]:
    """The tensors of a head with both maps of its draft vocabulary; `d2t` goes where there is none."""
    mapped = dict(tensors)
    if shape.draft_vocab_size == shape.vocab_size:
        mapped.pop("d2t", None)  # official checkpoints have no map then
    else:
        mapped["t2d"] = torch.zeros(shape.vocab_size, dtype=torch.bool)
        mapped["t2d"][mapped["d2t"] + torch.arange(shape.draft_vocab_size)] = True
    return mapped


def write_files(
    folder: Path, tensors: dict[str, Tensor], config: Mapping[str, Any], card: Mapping[str, Any]
) -> None:
    """Write a head's config.json, model.safetensors and card.json."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", dict(config)), ("card.json", dict(card))):
        write_json(folder / name, content, indent=2)


def official_config(head: DraftHead, aux_layers: Sequence[int] | None) -> dict[str, Any]:
    """The config.json of a head in SafeAILab's layout."""
    shape = head.shape
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bias": shape.fc_bias,
        "hidden_act": shape.hidden_act,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "num_hidden_layers": 1,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": shape.rope_scaling,
        "tie_word_embeddings": False,
        "torch_dtype": str(head.fc.weight.dtype).removeprefix("torch."),
        "vocab_size": shape.vocab_size,
        **{switch: True for switch in _SWITCHES if getattr(shape, switch)},
    }
    if head.has_vocabulary_map:
        config["draft_vocab_size"] = shape.draft_vocab_size
    if shape.target_hidden_size != shape.hidden_size:
        # Only then, because to the official code its mere presence means that the head has its own embedding.
        config["target_hidden_size"] = shape.target_hidden_size
    if aux_layers is not None:
        aux = {"eagle_aux_hidden_state_layer_ids": list(aux_layers), "use_aux_hidden_state": True}
        config["eagle_config"] = aux
    return config


def _refuse_misfit(head: DraftHead, config: HeadConfig, target: TargetFacts, where: str) -> None:
    """Raise if the head, though sound, was made for another target."""
    shape = head.shape
    if shape.target_hidden_size != target.hidden_size:
        raise ConfigError(
            f"{where}: fc.weight {list(head.fc.weight.shape)} is for a target of hidden size "
            f"{shape.target_hidden_size}, this one has {target.hidden_size}."
        )
    if shape.vocab_size != target.vocab_size:
        embedding = f"embed_tokens.weight [{shape.vocab_size}, {shape.hidden_size}]"
        raise ConfigError(
            f"{where}: {embedding if shape.own_embedding else 'vocab_size in its config.json'} is for a "
            f"target with a vocabulary of {shape.vocab_size}, this one has {target.vocab_size}."
        )
    outside = [layer for layer in config.aux_layers or () if abs(layer) > target.num_layers]
    if outside:
        raise ConfigError(
            f"{where}: its config.json taps layers {outside}, the target has {target.num_layers}."
        )


def _sort_ranked_map(maps: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Bring a `hot_token_id` that ranks tokens by frequency into rising order, with the LM head's rows.

    SGLang maps draft ids by this list alone, so that any order is valid there.
    """
    ids, rows = maps.get("hot_token_id"), tensors.get("lm_head.weight")
    if "d2t" in maps or ids is None or rows is None or ids.dim() != 1 or len(ids) != len(rows):
        return
    order = ids.argsort()
    if not torch.equal(order, torch.arange(len(order))):
        maps["hot_token_id"], tensors["lm_head.weight"] = ids[order], rows[order]


def _describe(head: DraftHead) -> dict[str, Any]:
    """The description of the network on a card."""
    names = (
        *("architecture", "hidden_size", "vocab_size", "draft_vocab_size", "num_taps", "rope_theta"),
        *("rope_scaling", "fc_bias", "qk_norm", "own_embedding", "own_lm_head", *_SWITCHES),
    )
    count = sum(parameter.numel() for parameter in head.parameters())
    return {"num_parameters": count, **{name: getattr(head.shape, name) for name in names}}
