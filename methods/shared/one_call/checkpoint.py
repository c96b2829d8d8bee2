"""Load, make and save the networks of drafters that guess several tokens in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.config import ConfigError
from harness.system.files import write_json
from methods.shared.eagle.checkpoint import TargetFacts
from methods.shared.eagle.config import HeadConfig, parse_config
from methods.shared.eagle.heads.filling import MAPS, filled, refuse_differences, vocabulary_map
from methods.shared.head_files import HeadFiles, read_head
from methods.shared.one_call.network import NetworkShape, OneCallNetwork

Shape = TypeVar("Shape", bound=NetworkShape)
Network = TypeVar("Network", bound=OneCallNetwork)
_UNUSED = ("head_dim",)
"""Entries of config.json that the released code does not read: heads are as wide as the states are
divided."""


class Loaded(NamedTuple, Generic[Network]):
    """A network that is ready to run (eval, no gradients)."""

    network: Network
    card: dict[str, Any]
    """JSON types: where it comes from, its number of parameters and its sizes."""
    shape: NetworkShape


class Sizes(NamedTuple):
    """Sizes of a new network; None takes the target's."""

    intermediate_size: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None


class Layout(NamedTuple, Generic[Shape, Network]):
    """How the networks of a method lie in files."""

    name: str
    read_shape: Callable[[HeadFiles, dict[str, Any], str], Shape]
    """From the files, the fields that all networks read alike, and the beginning of messages."""
    new: Callable[[Shape], Network]
    write_config: Callable[[Network], dict[str, Any]]
    """config.json without the fields that all networks write alike."""

    def load(
        self, path: str, revision: str | None, target: TargetFacts, dtype: torch.dtype, device: torch.device
    ) -> Loaded[Network]:
        """Load the network in the folder, or at the hub id, `path`.

        Raises:
            ConfigError: there is none, it cannot be read, is incomplete or was made for another target.
        """
        where = f"head={path}"
        files = read_head(path, revision, where)
        stated = {key: value for key, value in files.config.items() if key not in _UNUSED}
        common = _common(parse_config(stated, where), files, where)
        shape = self.read_shape(files, common, where)
        _refuse_misfit(shape, target, where)
        tensors = dict(files.tensors)
        maps = {name: tensors.pop(name) for name in MAPS if name in tensors}
        tensors["d2t"] = vocabulary_map(maps, shape.draft_vocab_size, shape.vocab_size, where)
        with torch.device("meta"):
            network = self.new(shape)
        refuse_differences(network, tensors, where)
        card = {**files.card, "format": self.name}
        return self._ready(network, tensors, dtype, device, card, shape)

    def random(self, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Loaded[Network]:
        """A network with random weights, to measure time alone; torch's random state is left as it was.

        Raises:
            ConfigError: the draft vocabulary is larger than the target's.
        """
        size, whole = shape.draft_vocab_size, shape.vocab_size
        if size > whole:
            raise ConfigError(f"draft_vocab_size={size}: at most the target's, {whole}.")
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the generators of all accelerators too.
            torch.default_generator.manual_seed(seed)
            sharp = self.new(shape)
            sharp.sharpen()
            tensors = sharp.state_dict()
            if size < whole:
                tensors["d2t"] = torch.randperm(whole)[:size].sort().values - torch.arange(size)
        with torch.device("meta"):
            network = self.new(shape)
        card = {"path": None, "format": "random", "seed": seed}
        return self._ready(network, tensors, dtype, device, card, shape)

    def save(
        self, network: Network, shape: Shape, folder: Path, card: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Write config.json, model.safetensors and card.json; returns the vocabulary map that was written."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        marked = torch.zeros(shape.vocab_size, dtype=torch.bool)
        marked[network.drafted_ids.cpu()] = True
        maps = {"d2t": tensors["d2t"], "t2d": marked}
        folder.mkdir(parents=True, exist_ok=True)
        save_file({**tensors, **maps}, folder / "model.safetensors", metadata={"format": "pt"})
        config = {**_written(shape, network), **self.write_config(network)}
        for name, content in (("config.json", config), ("card.json", dict(card))):
            write_json(folder / name, content, indent=2)
        return maps

    def _ready(
        self,
        network: Network,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
        card: dict[str, Any],
        shape: Shape,
    ) -> Loaded[Network]:
        network = filled(network, tensors, dtype, device)
        count = sum(parameter.numel() for parameter in network.parameters())
        names = (
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "draft_vocab_size",
        )
        sizes = {name: getattr(shape, name) for name in (*names, "rope_theta")}
        return Loaded(network, {**card, "num_parameters": count, **sizes}, shape)


def sizes_like(target: TargetFacts, like: Any, sizes: Sizes, draft_vocab_size: int | None) -> dict[str, Any]:
    """Fields of the shape of a new network for `target`.

    like: the target's transformers configuration. draft_vocab_size: None is the target's whole vocabulary.

    Raises:
        ConfigError: heads do not divide.
    """
    num_heads = sizes.num_heads or like.num_attention_heads
    num_kv_heads = sizes.num_kv_heads or getattr(like, "num_key_value_heads", None) or num_heads
    if target.hidden_size % num_heads or num_heads % num_kv_heads or target.hidden_size // num_heads % 2:
        raise ConfigError(
            f"num_heads={num_heads}, num_kv_heads={num_kv_heads}: num_heads must divide the hidden size"
            f" {target.hidden_size} into even parts, and num_kv_heads must divide num_heads"
        )
    return {
        "hidden_size": target.hidden_size,
        "intermediate_size": sizes.intermediate_size or like.intermediate_size,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": target.hidden_size // num_heads,
        "vocab_size": target.vocab_size,
        "draft_vocab_size": draft_vocab_size or target.vocab_size,
        "target_hidden_size": target.hidden_size,
    }


def number_of(config: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    """A positive number in config.json.

    Raises:
        ConfigError: it is missing and there is no default, or is no positive number.
    """
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{where}: its config.json says {key}={value!r}; a positive whole number is needed")
    return value


def _common(config: HeadConfig, files: HeadFiles, where: str) -> dict[str, Any]:
    """The fields of a shape that all networks read alike."""
    stated = {
        key: number_of(files.config, key, where)
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_hidden_layers",
            "vocab_size",
        )
    }
    num_heads, size = stated["num_attention_heads"], stated["hidden_size"]
    shared = {"hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "max_position_embeddings"}
    return {
        **config.model_dump(include=shared),
        "hidden_size": size,
        "intermediate_size": stated["intermediate_size"],
        "num_heads": num_heads,
        "num_kv_heads": config.num_key_value_heads or num_heads,
        "head_dim": size // num_heads,
        "num_layers": stated["num_hidden_layers"],
        "vocab_size": stated["vocab_size"],
        "draft_vocab_size": config.draft_vocab_size or stated["vocab_size"],
        "target_hidden_size": config.target_hidden_size or size,
    }


def _refuse_misfit(shape: NetworkShape, target: TargetFacts, where: str) -> None:
    """Raise if the network was made for another target."""
    for name, found, wanted in (
        ("hidden size", shape.target_hidden_size, target.hidden_size),
        ("vocabulary", shape.vocab_size, target.vocab_size),
    ):
        if found != wanted:
            raise ConfigError(f"{where}: is for a target with a {name} of {found}, this one has {wanted}.")


def _written(shape: NetworkShape, network: OneCallNetwork) -> dict[str, Any]:
    dtype = next(network.parameters()).dtype
    return {
        "model_type": "llama",
        "hidden_act": shape.hidden_act,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "num_hidden_layers": shape.num_layers,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": shape.rope_scaling,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": shape.vocab_size,
        "draft_vocab_size": shape.draft_vocab_size,
        **(
            {"target_hidden_size": shape.target_hidden_size}
            if shape.target_hidden_size != shape.hidden_size
            else {}
        ),
    }
