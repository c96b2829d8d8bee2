"""The generations of heads by name: the one place where an architecture is chosen."""

from __future__ import annotations

from typing import Any

from harness.config import ConfigError
from methods.shared.eagle.config import Evidence, HeadConfig, Shapes, attention_sizes
from methods.shared.eagle.heads.base import Architecture, DraftHead, HeadShape
from methods.shared.eagle.heads.eagle1 import Eagle1Head
from methods.shared.eagle.heads.eagle3 import Eagle3Head

HEADS: dict[Architecture, type[DraftHead]] = {"eagle": Eagle1Head, "eagle3": Eagle3Head}


def new_head(shape: HeadShape) -> DraftHead:
    """A head of this shape, with fresh weights."""
    return HEADS[shape.architecture](shape)


def head_shape(
    config: HeadConfig,
    shapes: Shapes,
    where: str,
    *,
    asked: Architecture,
    norm_output: bool | None = None,
    norm_before_residual: bool | None = None,
) -> HeadShape:
    """The network of a checkpoint; config.json stands in for missing tensors.

    asked: the architecture where no q_proj shows it. The flags, where not None, override config.json.

    Raises:
        ConfigError: tensors and configuration contradict each other, or neither gives a field.
    """
    hidden = Evidence(shapes, where, HEADS[asked].official_layer).size(
        "fc.weight", 0, "hidden_size", config.hidden_size
    )
    architecture = _recognised(shapes, hidden, where) or asked
    kind = HEADS[architecture]
    found = Evidence(shapes, where, kind.official_layer)
    common = {"architecture": architecture, **_common(config, found, hidden)}
    return kind.read_shape(config, found, common, norm_output, norm_before_residual)


def _recognised(shapes: Shapes, hidden: int, where: str) -> Architecture | None:
    """EAGLE-3's attention reads the embedding beside the state, so its q_proj is twice as wide."""
    shape = shapes.get("layer.self_attn.q_proj.weight")
    if shape is None:
        return None
    if shape[-1] not in (hidden, 2 * hidden):
        raise ConfigError(
            f"{where}: self_attn.q_proj.weight has shape {list(shape)}; at hidden_size {hidden} it is "
            f"{hidden} wide in an EAGLE-1/2 head, {2 * hidden} in an EAGLE-3 head."
        )
    return "eagle" if shape[-1] == hidden else "eagle3"


def _common(config: HeadConfig, found: Evidence, hidden: int) -> dict[str, Any]:
    """The fields of a shape that all generations read alike."""
    gate, shapes = "layer.mlp.gate_proj", found.shapes
    target_hidden = config.target_hidden_size or hidden
    return {
        "vocab_size": found.size("embed_tokens.weight", 0, "vocab_size", config.vocab_size),
        **config.model_dump(
            include={"hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "max_position_embeddings"}
        ),
        **attention_sizes(config, found, hidden),
        "hidden_size": hidden,
        "intermediate_size": found.size(f"{gate}.weight", 0, "intermediate_size", config.intermediate_size),
        "target_hidden_size": target_hidden,
        "qkv_bias": found.flag("layer.self_attn.q_proj.bias", "qkv_bias/attention_bias", config.qkv_bias),
        "o_bias": "layer.self_attn.o_proj.bias" in shapes,
        "mlp_bias": found.flag(f"{gate}.bias", "mlp_bias", config.mlp_bias),
        "qk_norm": "layer.self_attn.q_norm.weight" in shapes,
        "own_embedding": "embed_tokens.weight" in shapes or target_hidden != hidden,
    }
