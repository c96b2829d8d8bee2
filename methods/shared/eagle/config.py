"""What the config.json of an EAGLE head and the shapes of its tensors together say about its network.

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
from methods.shared.eagle.head import Architecture, HeadShape

Shapes = Mapping[str, Sequence[int]]
"""Of a checkpoint's tensors, by their names in `Head`."""
_Q_PROJ, _K_PROJ = "layer.self_attn.q_proj.weight", "layer.self_attn.k_proj.weight"


class HeadConfig(BaseModel):
    """The keys of a config.json that matter here, in any spelling; None where it is silent.

    bias: of `fc`; bias_expected: what the official code of EAGLE-1/2 takes for granted where it is absent.
    rope_theta stays 10000 where none is given, whatever the target has. aux_layers: as written.
    """

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
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: PositiveInt = Field(
        default=2048, validation_alias=AliasChoices("max_position_embeddings", "max_sequence_length")
    )
    bias: bool | None = None
    bias_expected: bool = True
    qkv_bias: bool | None = Field(default=None, validation_alias=AliasChoices("qkv_bias", "attention_bias"))
    mlp_bias: bool | None = None
    fc_norm: bool | None = None
    norm_before_fc: bool | None = None
    norm_output: bool = False
    norm_before_residual: bool = False
    aux_layers: tuple[int, ...] | None = Field(
        default=None, validation_alias="eagle_aux_hidden_state_layer_ids"
    )


def parse_config(raw: Mapping[str, Any], where: str) -> HeadConfig:
    """Read a config.json of any family; `where` begins each message.

    Raises:
        ConfigError: a value of the wrong type, or a rotary embedding that the network does not have.
    """
    flat = _flat(raw)
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
    try:
        return HeadConfig.model_validate(flat)
    except ValidationError as error:
        problems = "; ".join(f"{item['loc'][0]}={item['input']!r}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"{where}: its config.json cannot be used: {problems}") from error


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
    """Without the keys that are null, which say as much as absent ones."""
    return {key: value for key, value in part.items() if value is not None} if isinstance(part, dict) else {}


@dataclass(frozen=True)
class _Evidence:
    """Tensors beside the configuration: either may be silent, but they must not contradict each other."""

    shapes: Shapes
    where: str
    architecture: Architecture

    def fail(self, tensor: str, text: str) -> NoReturn:
        shape = self.shapes.get(tensor)
        state = "is missing" if shape is None else f"has shape {list(shape)}"
        raise ConfigError(f"{self.where}: {official_name(tensor, self.architecture)} {state}; {text}")

    def size(self, tensor: str, axis: int, key: str, said: int | None) -> int:
        """Length of an axis; `said` is what config.json says by `key`."""
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
        """Whether there is such a tensor; `said` is what config.json says by `key`."""
        if said is not None and said != (tensor in self.shapes):
            self.fail(tensor, f"config.json says {key}={str(said).lower()}.")
        return tensor in self.shapes


def head_shape(
    config: HeadConfig,
    shapes: Shapes,
    where: str,
    *,
    asked: Architecture,
    norm_output: bool | None = None,
    norm_before_residual: bool | None = None,
) -> HeadShape:
    """The network of a checkpoint; what a missing tensor would say is taken from config.json.

    asked: the architecture, where no q_proj tells. The flags: what to believe instead of config.json.

    Raises:
        ConfigError: tensors and configuration contradict each other, or something is said by neither.
    """
    hidden = _Evidence(shapes, where, asked).size("fc.weight", 0, "hidden_size", config.hidden_size)
    architecture = _architecture(shapes, hidden, where) or asked
    found = _Evidence(shapes, where, architecture)
    gate, target_hidden = "layer.mlp.gate_proj", config.target_hidden_size or hidden
    vocab_size = found.size("embed_tokens.weight", 0, "vocab_size", config.vocab_size)
    common: dict[str, Any] = {
        **config.model_dump(
            include={"hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "max_position_embeddings"}
        ),
        **_heads(config, found, hidden),
        "architecture": architecture,
        "hidden_size": hidden,
        "intermediate_size": found.size(f"{gate}.weight", 0, "intermediate_size", config.intermediate_size),
        "vocab_size": vocab_size,
        "target_hidden_size": target_hidden,
        "qkv_bias": found.flag("layer.self_attn.q_proj.bias", "qkv_bias/attention_bias", config.qkv_bias),
        "o_bias": "layer.self_attn.o_proj.bias" in shapes,
        "mlp_bias": found.flag(f"{gate}.bias", "mlp_bias", config.mlp_bias),
        "qk_norm": "layer.self_attn.q_norm.weight" in shapes,
        "own_embedding": "embed_tokens.weight" in shapes or target_hidden != hidden,
    }
    if architecture == "eagle":
        found.size("fc.weight", 1, "2 * hidden_size", 2 * hidden)
        bias = _bias_of_eagle(config, found)
        return HeadShape(**common, draft_vocab_size=vocab_size, fc_bias=bias, own_lm_head=False)
    own_lm_head = "lm_head.weight" in shapes
    said = config.draft_vocab_size or (None if own_lm_head else vocab_size)
    draft_vocab_size = found.size("lm_head.weight", 0, "draft_vocab_size", said)
    fc_norm = found.flag("fc_norm.0.weight", "fc_norm", config.fc_norm)
    norm_before_fc = found.flag("input_norm.weight", "norm_before_fc", config.norm_before_fc)
    if fc_norm and norm_before_fc:
        found.fail("input_norm.weight", "there is fc_norm too, but a head has one or the other.")
    if norm_output is None:
        norm_output = config.norm_output
    if norm_before_residual is None:
        norm_before_residual = config.norm_before_residual
    return HeadShape(
        **common,
        draft_vocab_size=draft_vocab_size,
        num_taps=_num_taps(config, found, target_hidden),
        # The official code gives an EAGLE-3 head none, whatever `bias` says: only a `false` can contradict.
        fc_bias=found.flag("fc.bias", "bias", config.bias if "fc.bias" in shapes else None),
        norm_before_residual=norm_before_residual,
        norm_output=norm_output,
        fc_norm=fc_norm,
        norm_before_fc=norm_before_fc,
        # One that has to be there is asked for, and then found missing.
        own_lm_head=own_lm_head or draft_vocab_size != vocab_size or target_hidden != hidden,
    )


def _architecture(shapes: Shapes, hidden: int, where: str) -> Architecture | None:
    """EAGLE-3's attention reads the embedding beside the state, so its q_proj is twice as wide."""
    shape = shapes.get(_Q_PROJ)
    if shape is None:
        return None
    if shape[-1] not in (hidden, 2 * hidden):
        raise ConfigError(
            f"{where}: self_attn.q_proj.weight has shape {list(shape)}; at hidden_size {hidden} it is "
            f"{hidden} wide in an EAGLE-1/2 head, {2 * hidden} in an EAGLE-3 head."
        )
    return "eagle" if shape[-1] == hidden else "eagle3"


def _heads(config: HeadConfig, found: _Evidence, hidden: int) -> dict[str, int]:
    num_heads = config.num_attention_heads
    if num_heads is None:
        found.fail(_Q_PROJ, "config.json says nothing of num_attention_heads.")
    num_kv_heads = config.num_key_value_heads or num_heads
    head_dim = config.head_dim or hidden // num_heads
    queries, keys = (found.shapes.get(name, (0,))[0] for name in (_Q_PROJ, _K_PROJ))
    if queries and queries % num_heads == 0 and queries * num_kv_heads == keys * num_heads:
        # The official code never reads `head_dim`, so heads are about whose config.json has the target's or
        # none at all: where the tensors agree with each other, they know.
        head_dim = queries // num_heads
    found.size(_Q_PROJ, 0, f"head_dim={head_dim} * num_attention_heads", num_heads * head_dim)
    found.size(_K_PROJ, 0, f"head_dim={head_dim} * num_key_value_heads", num_kv_heads * head_dim)
    return {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}


def _bias_of_eagle(config: HeadConfig, found: _Evidence) -> bool:
    expected = config.bias_expected if config.bias is None else config.bias
    if expected and "fc.bias" not in found.shapes:
        found.fail(
            "fc.bias",
            "its config.json does not say that there is none, and the official code would take a random one. "
            'If the head was trained without, write "bias": false there.',
        )
    return found.flag("fc.bias", "bias", config.bias)


def _num_taps(config: HeadConfig, found: _Evidence, target_hidden: int) -> int:
    """How many of the target's states `fc` reads."""
    num_aux = None if config.aux_layers is None else len(config.aux_layers)
    if "fc.weight" not in found.shapes:
        return num_aux or 3
    num_taps, rest = divmod(found.shapes["fc.weight"][1], target_hidden)
    if rest or not num_taps:
        found.fail(
            "fc.weight",
            f"its width must be a multiple of {target_hidden}, the target's hidden size according to "
            "config.json (target_hidden_size, else hidden_size).",
        )
    if num_aux not in (None, num_taps):
        found.fail(
            "fc.weight",
            f"it reads {num_taps} states of width {target_hidden}, config.json names {num_aux} layers: "
            f"{list(config.aux_layers or ())}.",
        )
    return num_taps
