"""Read the config.json of an EAGLE head, and check it against the shapes of the head's tensors.

Families of config.json: SafeAILab, SpecForge and SGLang (flat; `eagle_config`), speculators (the layer's part
under `transformer_layer_config`), vLLM (all of it under `model`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from harness.config import ConfigError
from methods.shared.eagle.files import official_name

Shapes = Mapping[str, Sequence[int]]
"""The shapes of a checkpoint's tensors, by their names in `DraftHead`."""
_Q_PROJ, _K_PROJ = "layer.self_attn.q_proj.weight", "layer.self_attn.k_proj.weight"


class HeadConfig(BaseModel):
    """The keys of a config.json that matter here, in any spelling; None where a key is absent."""

    model_config = ConfigDict(frozen=True)

    hidden_size: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    num_attention_heads: PositiveInt | None = None
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    vocab_size: PositiveInt | None = None
    draft_vocab_size: PositiveInt | None = None
    target_hidden_size: PositiveInt | None = None
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    rope_theta: PositiveFloat = 10000.0
    """Stays 10000 where config.json has none, whatever the target has."""
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: PositiveInt = Field(
        default=2048, validation_alias=AliasChoices("max_position_embeddings", "max_sequence_length")
    )
    bias: bool | None = None
    """Whether `fc` has a bias."""
    bias_expected: bool = True
    """What the official code of EAGLE-1/2 assumes where `bias` is absent."""
    qkv_bias: bool | None = Field(default=None, validation_alias=AliasChoices("qkv_bias", "attention_bias"))
    mlp_bias: bool | None = None
    fc_norm: bool | None = None
    norm_before_fc: bool | None = None
    norm_output: bool = False
    norm_before_residual: bool = False
    aux_layers: tuple[int, ...] | None = Field(
        default=None, validation_alias="eagle_aux_hidden_state_layer_ids"
    )
    """The tapped blocks, in whichever convention they were written."""


def parse_config(raw: Mapping[str, Any], where: str) -> HeadConfig:
    """Read a config.json of any family; `where` begins each message.

    Raises:
        ConfigError: a value of the wrong type, or a rotary embedding that the network does not have.
    """
    flat = with_rope(_flat(raw), where)
    try:
        return HeadConfig.model_validate(flat)
    except ValidationError as error:
        problems = "; ".join(f"{item['loc'][0]}={item['input']!r}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"{where}: its config.json cannot be used: {problems}") from error


def with_rope(flat: dict[str, Any], where: str) -> dict[str, Any]:
    """A flat config.json whose `rope_theta` and `rope_scaling` are found wherever transformers 4 or 5 wrote
    them.

    Raises:
        ConfigError: the rotary embedding is another one for each type of layer, or partial.
    """
    flat = dict(flat)
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):  # transformers 4, transformers 5
        rope |= _stated(flat.pop(key, None))
    partial = rope.get("partial_rotary_factor", flat.get("partial_rotary_factor", 1))
    if partial != 1 or any(isinstance(value, dict) for value in rope.values()):
        raise ConfigError(f"{where}: its config.json rotates only part of a head, or by layer type: {rope}.")
    if "rope_theta" in rope:
        flat["rope_theta"] = rope.pop("rope_theta")
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        flat["rope_scaling"] = rope
    return flat


def _flat(raw: Mapping[str, Any]) -> dict[str, Any]:
    outer = _stated(raw)
    layer = _stated(outer.pop("transformer_layer_config", None))
    flat = {**_stated(outer.pop("model", None)), **outer, **layer}
    flat = {**_stated(flat.pop("eagle_config", None)), **flat}
    if layer or "speculators_model_type" in raw:
        # A `bias` is the target's own there, copied; that of `fc` has another name, and another default.
        flat |= {"bias": outer.get("fusion_bias"), "bias_expected": False}
    return flat


def _stated(part: Any) -> dict[str, Any]:
    """A copy without the keys that are null: they mean the same as absent ones."""
    return {key: value for key, value in part.items() if value is not None} if isinstance(part, dict) else {}


@dataclass(frozen=True)
class Evidence:
    """Tensors beside the configuration: either may lack a fact, but they must not contradict each other."""

    shapes: Shapes
    where: str
    layer_prefix: str
    """Prefix of the layer's tensors in official checkpoints, for messages."""

    def fail(self, tensor: str, text: str) -> NoReturn:
        """Raise a ConfigError about a tensor."""
        shape = self.shapes.get(tensor)
        state = "is missing" if shape is None else f"has shape {list(shape)}"
        raise ConfigError(f"{self.where}: {official_name(tensor, self.layer_prefix)} {state}; {text}")

    def size(self, tensor: str, axis: int, key: str, said: int | None) -> int:
        """Length of an axis; `said` is the value of `key` in config.json."""
        shape = self.shapes.get(tensor)
        if shape is None:
            if said is None:
                self.fail(tensor, f"config.json says nothing of {key} either.")
            return said
        if len(shape) != 2:
            self.fail(tensor, "a matrix is expected.")
        if said is not None and said != shape[axis]:
            self.fail(tensor, f"config.json says {key}={said}.")
        return shape[axis]

    def flag(self, tensor: str, key: str, said: bool | None) -> bool:
        """Whether there is such a tensor; `said` is the value of `key` in config.json."""
        if said is not None and said != (tensor in self.shapes):
            self.fail(tensor, f"config.json says {key}={str(said).lower()}.")
        return tensor in self.shapes


def attention_sizes(config: HeadConfig, found: Evidence, hidden: int) -> dict[str, int]:
    """Numbers of attention heads and their dimension, as fields of a `HeadShape`.

    Raises:
        ConfigError: tensors and configuration contradict each other, or neither gives a number.
    """
    num_heads = config.num_attention_heads
    if num_heads is None:
        found.fail(_Q_PROJ, "config.json says nothing of num_attention_heads.")
    num_kv_heads = config.num_key_value_heads or num_heads
    head_dim = config.head_dim or hidden // num_heads
    queries, keys = (found.shapes.get(name, (0,))[0] for name in (_Q_PROJ, _K_PROJ))
    if queries and queries % num_heads == 0 and queries * num_kv_heads == keys * num_heads:
        # The official code never reads `head_dim`, so there are heads whose config.json has the target's, or
        # none at all. Where the tensors agree with each other, they are right.
        head_dim = queries // num_heads
    found.size(_Q_PROJ, 0, f"head_dim={head_dim} * num_attention_heads", num_heads * head_dim)
    found.size(_K_PROJ, 0, f"head_dim={head_dim} * num_key_value_heads", num_kv_heads * head_dim)
    return {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
