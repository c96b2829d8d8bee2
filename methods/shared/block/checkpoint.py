"""Load and save block drafters: all layouts are read, DeepSpec's is written.

Every tensor must be present and known, so that no part of a head stays random.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.config import ConfigError
from harness.drafting.drafter import TargetView
from harness.system.files import write_json
from methods.shared.block.config import Readings, read_shape
from methods.shared.block.networks.network import BlockNetwork
from methods.shared.block.shape import BlockShape, Kind, spread_taps
from methods.shared.eagle.heads.filling import blank, filled, refuse_differences, vocabulary_map
from methods.shared.head_files import read_head

_MAPS = ("d2t", "t2d")
_SPELLINGS = (
    (re.compile(r"^model\."), ""),
    # Older exports of DSpark and Domino.
    (re.compile(r"^logit_head\."), ""),
    # Published heads name DFlash2's tables without the suffix.
    (re.compile(r"^(candidate_selector\.(?:predecessor|successor)_codebook)$"), r"\1.weight"),
)
_USELESS = re.compile(r"rotary_emb\.inv_freq$|^verifier_")
"""Tensors that are computed from the configuration, or are the target's and kept for training."""
_FOREIGN = {"prefix_gru": "Domino", "embed_proj": "Domino", "xpress": "xpress"}
"""Parts of heads that are not supported, and whose heads these are."""


@dataclass(frozen=True, kw_only=True)
class LoadedBlock:
    """A block drafter that is ready to run (eval, no gradients)."""

    network: BlockNetwork
    card: dict[str, Any]
    """JSON types: path, revision and sha256 of a checkpoint, or the seed of a random head; num_parameters;
    every field of `BlockShape`."""


@dataclass(frozen=True, kw_only=True)
class RandomSizes:
    """The sizes of a random head; the others are the target's."""

    num_layers: int
    block_size: int
    """Inputs of a block."""
    intermediate_size: int | None
    """None takes the target's."""
    tap_layers: tuple[int, ...] | None
    """The target's blocks whose outputs are read; None: as many as the head has layers, spread over the
    target."""
    markov_rank: int
    """Rank of DSpark's correction."""
    draft_vocab_size: int | None
    """Tokens that can be drafted; None: all of the target's."""


def load_block(
    path: str,
    *,
    revision: str | None,
    readings: Readings,
    dtype: torch.dtype,
    device: torch.device,
) -> LoadedBlock:
    """Load the head in the folder, or at the hub id, `path`.

    Raises:
        ConfigError: there is no such head, it cannot be read, is incomplete, contradicts itself, or has parts
            that are not supported.
    """
    where = f"head={path}"
    files = read_head(path, revision, where)
    tensors = _canonical(files.tensors, where)
    maps = {name: tensors.pop(name) for name in _MAPS if name in tensors}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    shape = read_shape(files.config, shapes, where, readings)
    network = blank(lambda: BlockNetwork(shape), shape, where)
    tensors["d2t"] = vocabulary_map(maps, shape.draft_vocab_size, shape.vocab_size, where)
    refuse_differences(network, tensors, where)
    network = filled(network, tensors, dtype, device)
    return LoadedBlock(network=network, card={**files.card, **_describe(network)})


def random_block(
    kind: Kind,
    *,
    target: TargetView,
    sizes: RandomSizes,
    mask_token_id: int | None,
    dtype: torch.dtype,
    seed: int,
) -> LoadedBlock:
    """A head with random weights and the sizes of a real one for `target`.

    It serves to measure time, and as the beginning of a training. mask_token_id: None takes the last id of
    the vocabulary. Torch's random state is left as it was.

    Raises:
        ConfigError: the target has fewer tokens than are to be drafted.
    """
    if sizes.draft_vocab_size and sizes.draft_vocab_size > target.vocab_size:
        raise ConfigError(
            f"draft_vocab_size={sizes.draft_vocab_size}: at most the target's, {target.vocab_size}."
        )
    like = target.config
    num_heads, size, num_layers = like.num_attention_heads, like.hidden_size, sizes.num_layers
    shape = BlockShape(
        layout="random",
        hidden_size=size,
        intermediate_size=sizes.intermediate_size or like.intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=getattr(like, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(like, "head_dim", None) or size // num_heads,
        vocab_size=target.vocab_size,
        draft_vocab_size=sizes.draft_vocab_size or target.vocab_size,
        block_size=sizes.block_size,
        mask_token_id=target.vocab_size - 1 if mask_token_id is None else mask_token_id,
        tap_layers=sizes.tap_layers or spread_taps(num_layers, like.num_hidden_layers),
        tap_point="output",
        sliding=(False,) * num_layers,
        causal=(False,) * num_layers,
        max_position_embeddings=like.max_position_embeddings,
        **_random_parts(kind, target, sizes),
    )
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the generators of all accelerators too.
        torch.default_generator.manual_seed(seed)
        network = BlockNetwork(shape)
    network = network.place(target.device, dtype)
    return LoadedBlock(network=network, card={"path": None, "seed": seed, **_describe(network)})


def _random_parts(kind: Kind, target: TargetView, sizes: RandomSizes) -> dict[str, Any]:
    """What makes a random head one of this kind: fields of `BlockShape`."""
    size = target.config.hidden_size
    if kind == "dspark":
        markov = {"markov": "vanilla", "markov_rank": min(sizes.markov_rank, size)}
        return {**markov, "sample_from_anchor": True, "confidence": True, "confidence_reads_markov": True}
    if kind == "dflash2":
        selector = {"selector_rank": min(256, size), "selector_top_k": min(16, target.vocab_size)}
        convolution = {"conv_kernel": 2, "conv_group": 16 if size % 16 == 0 else 1}
        return {**convolution, **selector, "sample_from_anchor": False}
    return {"sample_from_anchor": False}


def refuse_misfit(shape: BlockShape, kind: Kind, target: TargetView, where: str) -> None:
    """Raise ConfigError if the head, though sound, was made for another method or another target."""
    config = target.config
    if shape.kind != kind:
        raise ConfigError(f"{where}: is a {shape.kind} head, by its tensors. Type method={shape.kind}.")
    if shape.hidden_size != config.hidden_size:
        raise ConfigError(
            f"{where}: is for a target of hidden size {shape.hidden_size}, this one has {config.hidden_size}."
        )
    if shape.vocab_size != target.vocab_size:
        raise ConfigError(
            f"{where}: is for a target with a vocabulary of {shape.vocab_size}, this one has"
            f" {target.vocab_size}."
        )
    if not 0 <= shape.mask_token_id < shape.vocab_size:
        raise ConfigError(
            f"mask_token_id={shape.mask_token_id}: allowed are the ids 0 to {shape.vocab_size - 1}."
        )
    last = config.num_hidden_layers - 1
    outside = [layer for layer in shape.tap_layers if not -1 <= layer <= last]
    if outside:
        raise ConfigError(
            f"{where}: taps the {shape.tap_point}s of blocks {list(shape.tap_layers)}, the target has blocks"
            f" 0 to {last}. Where a head names the last entry of hidden_states, it reads a normalised state,"
            " which is not supported."
        )


def refuse_unwritable(network: BlockNetwork, where: str) -> None:
    """Raise ConfigError if the head has a convention that the layout of `save_block` cannot say.

    Heads of other layouts may: speculators counts the taps' inputs and ends windows at anchors.
    """
    shape = network.shape
    names = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if not shape.own_lm_head:
        names.pop("lm_head.weight", None)
    written = read_shape(_written_config(network), names, where, Readings())
    lost = [
        f"{field.name}={getattr(shape, field.name)}"
        for field in dataclasses.fields(shape)
        if field.name != "layout" and getattr(shape, field.name) != getattr(written, field.name)
    ]
    if lost:
        raise ConfigError(
            f"{where}: a {shape.layout} head cannot be trained on, because the layout that is written cannot"
            f" say {', '.join(lost)}; train one from start=random"
        )


def save_block(network: BlockNetwork, folder: Path, card: Mapping[str, Any]) -> None:
    """Write config.json, model.safetensors and card.json in z-lab's layout, a DSpark head in DeepSpec's."""
    shape = network.shape
    left_out = {"d2t"} if shape.draft_vocab_size == shape.vocab_size else set()
    if not shape.own_lm_head:
        left_out |= {"lm_head.weight", "lm_head.bias"}
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
        if name not in left_out
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", _written_config(network)), ("card.json", dict(card))):
        write_json(folder / name, content, indent=2)


def _written_config(network: BlockNetwork) -> dict[str, Any]:
    shape = network.shape
    kinds = {True: "sliding_attention", False: "full_attention"}
    rope = {"rope_theta": shape.rope_theta, "rope_type": "default", **(shape.rope_scaling or {})}
    config: dict[str, Any] = {
        "model_type": "qwen3",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "draft_vocab_size": shape.draft_vocab_size,
        "hidden_act": shape.hidden_act,
        "rms_norm_eps": shape.rms_norm_eps,
        # Twice, because transformers 4 reads the one and transformers 5 the other.
        "rope_theta": shape.rope_theta,
        "rope_parameters": rope,
        "max_position_embeddings": shape.max_position_embeddings,
        "attention_bias": shape.attention_bias,
        "layer_types": [kinds[sliding] for sliding in shape.sliding],
        "sliding_window": shape.window,
        "dtype": str(network.fc.weight.dtype).removeprefix("torch."),
    }
    own = {
        "block_size": shape.block_size,
        "mask_token_id": shape.mask_token_id,
        "target_layer_ids": list(shape.tap_layers),
    }
    if shape.sample_from_anchor:
        heads = {
            "markov_rank": shape.markov_rank,
            "markov_head_type": shape.markov or "vanilla",
            "enable_confidence_head": shape.confidence,
            "confidence_head_with_markov": shape.confidence_reads_markov,
        }
        return {**config, "architectures": ["Qwen3DSparkModel"], **own, **heads}
    return {**config, "architectures": ["DFlashDraftModel"], "dflash_config": own}


def _canonical(written: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors under their names in `BlockNetwork`."""
    named: dict[str, Tensor] = {}
    for name, tensor in written.items():
        short = name
        for pattern, canonical in _SPELLINGS:
            short = pattern.sub(canonical, short)
        if _USELESS.search(short):
            continue
        maker = next((whose for part, whose in _FOREIGN.items() if part in short), None)
        if maker:
            raise ConfigError(f"{where}: is a {maker} head, by its tensor {name}, which is not supported.")
        if short in named:
            raise ConfigError(f"{where}: has the tensor {name} under another name too.")
        named[short] = tensor
    return named


def _describe(network: BlockNetwork) -> dict[str, Any]:
    """The description of the network on a card."""
    count = sum(parameter.numel() for parameter in network.parameters())
    shape = dataclasses.asdict(network.shape)
    return {"num_parameters": count, "kind": network.shape.kind, **shape}
