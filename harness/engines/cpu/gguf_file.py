"""A LLaMA checkpoint as a GGUF file in float32, for llama.cpp: the same numbers in another order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from harness.config import ConfigError
from harness.system.files import PART
from harness.system.progress import waiting
from harness.target.checkpoint import fingerprint
from harness.target.smollm2 import cache_root

BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names of a block's tensors in transformers and in GGUF."""
_OTHERS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_ASCII_SPACE = " "


def gguf_of(folder: Path, tokenizer: Any) -> Path:
    """The GGUF file of a checkpoint folder, written on first use and kept below the cache folder.

    Raises:
        ConfigError: another architecture, or a form of it that this writer does not know.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _check(config, folder)
    file = cache_root() / "gguf" / f"{folder.name}-{fingerprint(folder)}-f32.gguf"
    return written_once(file, lambda part: write_gguf(folder, config, tokenizer, part))


def written_once(file: Path, write: Callable[[Path], None]) -> Path:
    """`file`, which `write` makes under another name where it does not exist yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(file.with_name(f"{file.name}.lock")):
        if not file.exists():
            part = file.with_name(file.name + PART)
            with waiting("writing the weights as GGUF (once)", usual_s=10):
                write(part)
            part.rename(file)
    return file


def _check(config: dict[str, Any], folder: Path) -> None:
    wrong = {
        "model_type": config.get("model_type") != "llama",
        "rope_scaling": bool(rope_of(config)[1]),
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(
                f"target.path={folder}: {name}={config.get(name)} is not among what is written as GGUF here"
                " (LLaMA without scaled rotation and without biases); type engine.gguf=FILE with one that"
                " llama.cpp's own converter has made"
            )


def rope_of(config: dict[str, Any]) -> tuple[float, str]:
    """The base of the rotation, and the name of its scaling ("" if there is none), of any kind of config."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = given.get("rope_type") or given.get("type") or "default"
    base = given.get("rope_theta") or config.get("rope_theta") or 10000.0
    return float(base), "" if kind == "default" else str(kind)


def write_gguf(folder: Path, config: dict[str, Any], tokenizer: Any, file: Path) -> None:
    """Write a LLaMA checkpoint to `file`; see `gguf_of`."""
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    num_heads, num_kv_heads = add_sizes(writer, folder.name, config)
    add_vocabulary(writer, tokenizer, config["vocab_size"])
    for name, values in _tensors(folder):
        kind = _OTHERS.get(name) or _block_name(name)
        if kind == "output" and config.get("tie_word_embeddings"):
            continue
        if kind.endswith(("attn_q", "attn_k")):
            values = rotated(values, num_heads if kind.endswith("q") else num_kv_heads)
        writer.add_tensor(f"{kind}.weight", values)
    finish(writer)


def add_sizes(writer: Any, name: str, config: dict[str, Any]) -> tuple[int, int]:
    """Add the sizes of a network of LLaMA's blocks; returns its numbers of query and of key/value heads."""
    import gguf

    num_heads = config["num_attention_heads"]
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(num_kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope_of(config)[0])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    return num_heads, num_kv_heads


def finish(writer: Any) -> None:
    """Write everything that was added, and close the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(folder: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every weight of a checkpoint in float32, with its name less `.weight`."""
    from safetensors import safe_open

    for part in sorted(folder.glob("*.safetensors")):
        # torch reads bfloat16, which numpy lacks.
        with safe_open(part, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                if name.endswith(".weight"):
                    yield name.removesuffix(".weight"), file.get_tensor(name).float().numpy()


def _block_name(name: str) -> str:
    _, _, number, inner = name.split(".", 3)
    return f"blk.{number}.{BLOCK[inner]}"


def rotated(weight: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Rows of a query or key projection [H * D, W] in GGUF's order.

    transformers rotates the first half of a head against the second, GGUF's LLaMA each even row against the
    odd one behind it.
    """
    rows, width = weight.shape
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, width)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, width))


def add_vocabulary(writer: Any, tokenizer: Any, vocab_size: int) -> None:
    """Tokens, merges and the end token. Prompts and answers are ids, so that nothing depends on merges."""
    import gguf

    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    known = {number: token for token, number in tokenizer.get_vocab().items()}
    special = {one["id"] for one in whole.get("added_tokens", []) if one.get("special")}
    kinds = [
        gguf.TokenType.UNUSED
        if number not in known
        else gguf.TokenType.CONTROL
        if number in special
        else gguf.TokenType.NORMAL
        for number in range(vocab_size)
    ]
    merges = [one if isinstance(one, str) else _ASCII_SPACE.join(one) for one in whole["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([known.get(number, f"[PAD{number}]") for number in range(vocab_size)])
    writer.add_token_types(kinds)
    # llama.cpp refuses a vocabulary without merges, as one of bytes alone is.
    writer.add_token_merges(merges or [_ASCII_SPACE.join((known[0], known[1]))])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
