"""What is known of a target without its weights: enough to ask another engine, and to read its answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.config import ConfigError
from harness.target.checkpoint import fingerprint
from harness.target.spec import Progress, TargetSpec, context_limit


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A target without its weights."""

    tokenizer: Any
    location: str | None
    """Folder or hub id from which another program can load the weights; None for random ones."""
    end_token_ids: tuple[int, ...]
    max_context: int
    vocab_size: int
    card: dict[str, Any]
    """JSON types: source, path, fingerprint of a folder, architecture and vocab_size."""


def outline(spec: TargetSpec, progress: Progress) -> Outline:
    """Read tokenizer and configuration of a target; its weights may be converted, but are not loaded.

    Raises:
        ConfigError: there is no such model, or it has no tokenizer.
    """
    try:
        tokenizer, location = spec.tokenizer(progress)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"target.path={spec.path}: its tokenizer cannot be read: {error}") from error
    config = spec.shape()
    text = config.get_text_config()
    described = SimpleNamespace(generation_config=_generation_config(location, spec.revision, config))
    folder = Path(location) if location else None
    card: dict[str, Any] = {
        "source": f"random (seed {spec.seed})"
        if location is None
        else "folder"
        if _is_folder(folder)
        else "hub",
        "path": spec.path,
        "revision": spec.revision,
        "architecture": (config.architectures or [type(config).__name__])[0],
        "num_layers": text.num_hidden_layers,
        "vocab_size": text.vocab_size,
    }
    if folder is not None and folder.is_dir():
        card["fingerprint"] = fingerprint(folder)
    return Outline(
        tokenizer=tokenizer,
        location=location,
        end_token_ids=spec.chat.end_tokens(described, tokenizer),
        max_context=context_limit(text, spec.name, spec.max_context),
        vocab_size=text.vocab_size,
        card=card,
    )


def _is_folder(folder: Path | None) -> bool:
    return folder is not None and folder.is_dir()


def _generation_config(location: str | None, revision: str | None, config: Any) -> Any:
    """transformers' generation config of a checkpoint; what its model config says where it has none."""
    from transformers import GenerationConfig

    if location is not None:
        try:
            return GenerationConfig.from_pretrained(location, revision=revision)
        except OSError:
            pass
    return GenerationConfig.from_model_config(config)
