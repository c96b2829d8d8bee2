"""The model that drafts for `sps`: any causal LM of transformers, or a part of the target."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harness.config import ConfigError
from harness.drafting.drafter import TargetView
from harness.system import hub

FIRST_LAYERS, RANDOM = "first_layers", "random"
_REMEDY = (
    "Give a model with the target's tokenizer by methods.sps.model=FOLDER (or a hub id ORG/NAME), or"
    " methods.sps.model=first_layers for the first blocks of the target itself."
)


def load_model(
    name: str, revision: str | None, num_layers: int, seed: int, target: TargetView, dtype: torch.dtype
) -> Any:
    """The model `name`, ready to draft on the target's device.

    Args:
        name: a folder, a hub id, `first_layers` or `random`.
        revision: of a hub id.
        num_layers: blocks of `first_layers` and `random`, at most the target's.
        seed: of random weights.
        target: what is drafted for.
        dtype: of the weights.

    Raises:
        ConfigError: there is no such model, or it has another vocabulary than the target.
    """
    if name in (FIRST_LAYERS, RANDOM) and num_layers > target.config.num_hidden_layers:
        raise ConfigError(
            f"num_layers={num_layers}: the target has only {target.config.num_hidden_layers} blocks"
        )
    if name == RANDOM:
        model = _random(target, num_layers, seed, dtype)
    elif name == FIRST_LAYERS:
        model = _first_layers(target, num_layers, dtype)
    else:
        folder = _folder(name, revision, _REMEDY)
        _refuse_other_vocabulary(AutoConfig.from_pretrained(folder).vocab_size, name, target)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    _refuse_other_vocabulary(model.config.vocab_size, name, target)
    return model.to(target.device).eval().requires_grad_(False)


def fingerprint(model: Any) -> str:
    """A hash of all weights."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _random(target: TargetView, num_layers: int, seed: int, dtype: torch.dtype) -> Any:
    facts = target.config.to_dict()
    if facts.get("layer_types"):
        facts["layer_types"] = facts["layer_types"][:num_layers]
    config = type(target.config)(**{**facts, "num_hidden_layers": num_layers})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")


def _first_layers(target: TargetView, num_layers: int, dtype: torch.dtype) -> Any:
    name = str(getattr(target.config, "_name_or_path", ""))
    try:
        if not name:
            raise ConfigError("it has random weights")
        folder = _folder(name, getattr(target.config, "_commit_hash", None), "")
    except ConfigError as error:
        raise ConfigError(
            f"model={FIRST_LAYERS}: the target's weights are neither in a folder of this machine nor on the"
            f" hub ({error}), so its first blocks cannot be read again."
            " Give a draft model by methods.sps.model=FOLDER (or a hub id ORG/NAME)."
        ) from error
    # The blocks that are left out are weights that nobody asked for.
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, num_hidden_layers=num_layers)


def _folder(name: str, revision: str | None, remedy: str) -> str:
    """The folder of a model that is one, or a hub id. remedy: ends the messages."""
    if Path(name).is_dir():
        return name
    try:
        with hub.asking(f"model={name}", f"revision={revision} of the draft model {name}", remedy):
            info = huggingface_hub.HfApi().model_info(name, revision=revision, timeout=hub.TIMEOUT_S)
            return huggingface_hub.snapshot_download(
                name, revision=info.sha, allow_patterns=["*.json", "*.safetensors"]
            )
    except hub.Unreachable as why:
        try:
            return huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"model={name}: no such folder, and the hub cannot be reached ({why}). {remedy}".rstrip()
            ) from error


def _refuse_other_vocabulary(vocab_size: int, name: str, target: TargetView) -> None:
    if vocab_size != target.vocab_size:
        raise ConfigError(
            f"model={name}: drafts from a vocabulary of {vocab_size} tokens, the target has"
            f" {target.vocab_size}; the same id would mean different text. {_REMEDY}"
        )
