"""Read the config.json of a block drafter in any layout, and check it against the shapes of its tensors.

z-lab: a flat Qwen3 configuration with `dflash_config`, whose keys come first. SpecForge: the same, with a
`projector_type` in it. DeepSpec: flat, its class is called ...DSparkModel. speculators: what concerns the
layers is under `transformer_layer_config`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from harness.config import ConfigError
from methods.shared.block.shape import BlockShape, Layout, Markov, spread_taps
from methods.shared.eagle.config import with_rope

Shapes = Mapping[str, Sequence[int]]
"""The shapes of a checkpoint's tensors, by their names in `BlockNetwork`."""


@dataclass(frozen=True, kw_only=True)
class Readings:
    """What the user says about a checkpoint's conventions; None takes what the checkpoint says."""

    sample_from_anchor: bool | None = None
    tap_point: str | None = None
    causal: bool | None = None
    mask_token_id: int | None = None


class _Config(BaseModel):
    """The keys that matter, in any layout; None where a key is absent."""

    model_config = ConfigDict(frozen=True)

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    vocab_size: PositiveInt
    draft_vocab_size: PositiveInt | None = None
    hidden_act: str = "silu"
    rms_norm_eps: PositiveFloat = 1e-6
    rope_theta: PositiveFloat = 10000.0
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: PositiveInt = 32768
    attention_bias: bool = False
    block_size: int = Field(ge=2)
    mask_token_id: int | None = Field(default=None, ge=0)
    target_layer_ids: tuple[int, ...] | None = Field(
        default=None, validation_alias=AliasChoices("target_layer_ids", "aux_hidden_state_layer_ids")
    )
    num_target_layers: PositiveInt | None = None
    layer_types: tuple[str, ...] | None = None
    sliding_window: PositiveInt | None = None
    sliding_window_non_causal: bool = False
    is_causal: bool | None = Field(default=None, validation_alias=AliasChoices("is_causal", "causal"))
    sample_from_anchor: bool | None = None
    projector_type: str | None = None
    input_embedding_scale: float = 1.0
    output_multiplier: float = 1.0
    final_logit_softcapping: PositiveFloat | None = None
    markov_rank: int | None = Field(default=None, ge=0)
    markov_head_type: str | None = None
    enable_confidence_head: bool | None = None
    conv_kernel_size: int = 0
    conv_group_size: int = 1
    selector_rank: int | None = None
    selector_top_k: int = Field(default=16, ge=1)


def read_shape(raw: Mapping[str, Any], shapes: Shapes, where: str, readings: Readings) -> BlockShape:
    """The network of a checkpoint; `where` begins each message.

    Raises:
        ConfigError: a value is missing or of the wrong type, or tensors and configuration contradict each
            other.
    """
    layout = _layout(raw)
    try:
        config = _Config.model_validate(with_rope(_flat(raw, layout), where))
    except ValidationError as error:
        problems = "; ".join(f"{item['loc'][0]}={item['input']!r}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"{where}: its config.json ({layout} layout) cannot be used: {problems}") from error
    mask = config.mask_token_id if readings.mask_token_id is None else readings.mask_token_id
    if mask is None:
        raise ConfigError(f"{where}: its config.json has no mask_token_id; type mask_token_id=N")
    taps = config.target_layer_ids
    if taps is None:
        if config.num_target_layers is None:
            raise ConfigError(f"{where}: its config.json names no target_layer_ids, nor num_target_layers.")
        taps = spread_taps(config.num_hidden_layers, config.num_target_layers)
    # speculators indexes hidden_states, which begins with the embedding: number i is what enters block i.
    point: Any = readings.tap_point or ("input" if layout == "speculators" else "output")
    sliding = _sliding(config, where)
    return BlockShape(
        layout=layout,
        block_size=config.block_size,
        mask_token_id=mask,
        sample_from_anchor=_sample_from_anchor(config, layout, raw, readings.sample_from_anchor, where),
        tap_layers=taps,
        tap_point=point,
        sliding=sliding,
        causal=_causal(config, layout, sliding, readings.causal),
        window=config.sliding_window if any(sliding) else None,
        window_bound="anchor" if layout == "speculators" else "slot",
        qk_norm="layers.0.self_attn.q_norm.weight" in shapes,
        embedding_scale=config.input_embedding_scale,
        output_multiplier=config.output_multiplier,
        softcap=config.final_logit_softcapping,
        own_embedding="embed_tokens.weight" in shapes,
        own_lm_head="lm_head.weight" in shapes,
        **_layers(config),
        **_heads(config, shapes, where),
    )


def _layers(config: _Config) -> dict[str, Any]:
    """The sizes and the arithmetic of the decoder layers."""
    num_heads = config.num_attention_heads
    same = ("hidden_size", "intermediate_size", "vocab_size", "attention_bias", "hidden_act", "rms_norm_eps")
    rope = ("rope_theta", "rope_scaling", "max_position_embeddings")
    return {
        **config.model_dump(include={*same, *rope}),
        "num_layers": config.num_hidden_layers,
        "num_heads": num_heads,
        "num_kv_heads": config.num_key_value_heads or num_heads,
        "head_dim": config.head_dim or config.hidden_size // num_heads,
        "draft_vocab_size": config.draft_vocab_size or config.vocab_size,
    }


def _layout(raw: Mapping[str, Any]) -> Layout:
    """Whose layout it is, by what only that one has."""
    if "speculators_model_type" in raw or "transformer_layer_config" in raw:
        return "speculators"
    inner = raw.get("dflash_config")
    if isinstance(inner, dict) or any("DFlash" in str(name) for name in raw.get("architectures") or ()):
        return "SpecForge" if isinstance(inner, dict) and inner.get("projector_type") else "z-lab"
    return "DeepSpec"


def _flat(raw: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    inner = "transformer_layer_config" if layout == "speculators" else "dflash_config"
    part = {key: value for key, value in (raw.get(inner) or {}).items() if value is not None}
    whole = {key: value for key, value in raw.items() if key != inner and value is not None}
    # The layers' part holds the target's facts, beside which the drafter's own are said outside of it.
    return {**part, **whole} if layout == "speculators" else {**whole, **part}


def _sliding(config: _Config, where: str) -> tuple[bool, ...]:
    types = config.layer_types or ("full_attention",) * config.num_hidden_layers
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown or len(types) != config.num_hidden_layers:
        raise ConfigError(
            f"{where}: its config.json has layer_types {list(types)} for {config.num_hidden_layers} layers."
            " Allowed: full_attention, sliding_attention, one per layer."
        )
    if "sliding_attention" in types and config.sliding_window is None:
        raise ConfigError(
            f"{where}: its config.json has layers with sliding_attention, but no sliding_window."
        )
    return tuple(kind == "sliding_attention" for kind in types)


def _causal(
    config: _Config, layout: Layout, sliding: tuple[bool, ...], reading: bool | None
) -> tuple[bool, ...]:
    """Per layer: as said for all of them, else sliding layers are causal and full ones are not."""
    stated = config.is_causal if reading is None else reading
    if stated is not None:
        return (stated,) * len(sliding)
    if layout == "speculators" and config.sliding_window_non_causal:
        return (False,) * len(sliding)
    return sliding


def _sample_from_anchor(
    config: _Config, layout: Layout, raw: Mapping[str, Any], reading: bool | None, where: str
) -> bool:
    """The convention of the slots, by whoever trained the head; no file but speculators' says it."""
    if reading is not None:
        return reading
    if config.sample_from_anchor is not None:
        return config.sample_from_anchor
    if layout == "speculators":
        return raw.get("speculators_model_type") == "dspark"
    if layout == "SpecForge":
        known = {"dflash": False, "dspark": True}
        kind = str(config.projector_type)
        if kind not in known:
            raise ConfigError(
                f"{where}: projector_type={kind} in its config.json is not supported; allowed:"
                f" {', '.join(known)}"
            )
        return known[kind]
    return layout == "DeepSpec"


def _heads(config: _Config, shapes: Shapes, where: str) -> dict[str, Any]:
    """The parts beside the backbone, by their tensors; config.json must not contradict them."""
    first = shapes.get("markov_head.markov_w1.weight")
    rank = first[-1] if first else 0
    if config.markov_rank is not None and config.markov_rank != rank:
        raise ConfigError(
            f"{where}: markov_head.markov_w1.weight {list(first) if first else 'is missing'}, but config.json"
            f" says markov_rank={config.markov_rank}."
        )
    markov: Markov | None = None
    if rank:
        gated, joint = (f"markov_head.{name}_proj.weight" in shapes for name in ("gate", "joint"))
        markov = "gated" if gated else "rnn" if joint else "vanilla"
        if config.markov_head_type not in (None, markov):
            raise ConfigError(
                f"{where}: its tensors are those of a {markov} correction head, but config.json says"
                f" markov_head_type={config.markov_head_type}."
            )
    read = shapes.get("confidence_head.proj.weight")
    if config.enable_confidence_head not in (None, read is not None):
        raise ConfigError(
            f"{where}: confidence_head.proj.weight {'is there' if read else 'is missing'}, but config.json"
            f" says enable_confidence_head={str(config.enable_confidence_head).lower()}."
        )
    codebook = shapes.get("candidate_selector.predecessor_codebook.weight")
    selector = codebook[-1] if codebook else 0
    if config.selector_rank not in (None, selector):
        raise ConfigError(
            f"{where}: candidate_selector.predecessor_codebook has rank {selector}, config.json says"
            f" selector_rank={config.selector_rank}."
        )
    convolves = "layers.0.attention_conv.base_kernel" in shapes
    return {
        "markov": markov,
        "markov_rank": rank,
        "confidence": read is not None,
        "confidence_reads_markov": read is not None and read[-1] > config.hidden_size,
        "conv_kernel": config.conv_kernel_size if convolves else 0,
        "conv_group": config.conv_group_size,
        "selector_rank": selector,
        "selector_top_k": config.selector_top_k if selector else 0,
    }
