"""Find and read a checkpoint; refuse, before its weights are fetched, a model that the loop cannot serve."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch

from harness.config import ConfigError
from harness.runtime.attention import Window
from harness.system import hub

_WITHOUT_HUB = (
    "Without the hub: target.path=FOLDER (a downloaded model), target=smollm2_135m (a Python package), "
    "or target=tiny (random weights)."
)
_INDEX = "model.safetensors.index.json"
WINDOWED = (
    *("afmoe", "cohere2", "exaone4", "gemma3_text", "gemma4_text", "kolibri1", "ministral", "mistral"),
    *("olmo3", "qwen2", "qwen3", "smollm3"),
)
"""Architectures whose layers of sliding attention take a mask of each kind, and that were tried. Others bring
more than a window: attention sinks, or a bound on the scores."""
_NUM_SAMPLES, _SAMPLE_BYTES = 64, 1 << 14
"""How much of every weight file goes into its fingerprint."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model on the hub or on disk, and what is known of it before it is loaded."""

    location: str
    """Hub id or folder, as `from_pretrained` takes it."""
    revision: str | None
    """Commit on the hub; None for a folder that the user named."""
    files: frozenset[str]
    """Names of the files at its top level."""
    config: dict[str, Any]
    """Its config.json."""
    source: str
    """`hub`, `hub (earlier download)` or `folder`, for the card."""

    @property
    def has_safetensors(self) -> bool:
        """Whether it has weights as safetensors."""
        return any(name.endswith(".safetensors") for name in self.files)

    @property
    def has_pickles(self) -> bool:
        """Whether it has weights as pickles, which can run code when they are read."""
        return any(name.endswith(".bin") and name.startswith("pytorch_model") for name in self.files)


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The part of a `TargetSpec` that says which weights are loaded; its fields are documented there."""

    path: str | None
    revision: str | None
    weights: str
    seed: int
    trust_remote_code: bool
    allow_pickle: bool

    @property
    def is_random(self) -> bool:
        """Whether only the shape is the checkpoint's."""
        return self.weights == "random"

    def find(self) -> tuple[Checkpoint, Any]:
        """The checkpoint and its transformers config; see `locate` and `readable_config` for the errors."""
        if self.path is None:
            raise ConfigError(
                "target.path: not given. Type target.path=ORG/NAME (hub) or target.path=FOLDER."
            )
        checkpoint = locate(self.path, self.revision)
        return checkpoint, readable_config(checkpoint, self.path, self.trust_remote_code)

    def check_files(self, checkpoint: Checkpoint) -> None:
        """Raise ConfigError if there are no weights to read, or only pickles that are not allowed."""
        if self.is_random:
            return
        if checkpoint.has_safetensors:
            self._check_index(checkpoint)
            return
        if not checkpoint.has_pickles:
            raise ConfigError(f"target.path={self.path}: has no weights (*.safetensors) to load.")
        if not self.allow_pickle:
            raise ConfigError(
                f"target.path={self.path}: has only pickled weights (*.bin), which can run code when read. "
                "If you trust where they come from, type target.allow_pickle=true."
            )

    def _check_index(self, checkpoint: Checkpoint) -> None:
        """Raise ConfigError if the index of the safetensors names files of another kind, such as pickles."""
        if _INDEX not in checkpoint.files:
            return
        folder = Path(checkpoint.location)
        if not folder.is_dir():
            with hub.asking(f"target.path={self.path}", f"target.revision={self.revision}", _WITHOUT_HUB):
                fetched = huggingface_hub.hf_hub_download(
                    checkpoint.location, _INDEX, revision=checkpoint.revision
                )
            folder = Path(fetched).parent
        shards = _read_config(folder / _INDEX, str(self.path)).get("weight_map")
        named = set(map(str, shards.values())) if isinstance(shards, dict) else {"nothing"}
        if wrong := sorted(name for name in named if not re.fullmatch(r"[^/\\]+\.safetensors", name)):
            raise ConfigError(
                f"target.path={self.path}: its {_INDEX} names {wrong[0]!r}. Allowed: files of the same folder"
                " that end in .safetensors; a pickle can run code when it is read."
            )

    def tokenizer(self, checkpoint: Checkpoint) -> Any:
        """The checkpoint's tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(**self._arguments(checkpoint))

    def read(self, checkpoint: Checkpoint, **options: Any) -> Any:
        """The model with the checkpoint's weights; `options` are those of transformers' `from_pretrained`.

        Raises:
            ConfigError: a tensor is missing, which transformers would initialise at random.
        """
        from transformers import AutoModelForCausalLM

        model, report = AutoModelForCausalLM.from_pretrained(
            **self._arguments(checkpoint),
            **options,
            use_safetensors=checkpoint.has_safetensors,
            output_loading_info=True,
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ConfigError(
                f"target.path={self.path}: {len(missing)} tensors are missing from its weights, the first is "
                f"{missing[0]!r}. It is another kind of model, or an incomplete copy."
            )
        return model

    def random_model(self, config: Any, device: torch.device, **options: Any) -> Any:
        """A model of this shape that transformers initialises from `seed`; torch's own random state is kept.

        options: those of transformers' `from_config`.
        """
        from transformers import AutoModelForCausalLM

        remote = {"trust_remote_code": True} if self.trust_remote_code else {}
        with torch.random.fork_rng(), device:
            torch.manual_seed(self.seed)
            return AutoModelForCausalLM.from_config(config, **options, **remote)

    def _arguments(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return {
            "pretrained_model_name_or_path": checkpoint.location,
            "revision": checkpoint.revision,
            "trust_remote_code": self.trust_remote_code,
        }


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits over the weight files of a folder: their names, sizes and samples of their content.

    Training changes weights everywhere, so a megabyte of each file is enough to tell two versions apart;
    reading all of a large model takes minutes.
    """
    total = hashlib.sha256()
    for file in sorted(f for f in folder.iterdir() if f.suffix in (".safetensors", ".bin")):
        size = file.stat().st_size
        total.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            for number in range(_NUM_SAMPLES):
                stream.seek(size * number // _NUM_SAMPLES)
                total.update(stream.read(_SAMPLE_BYTES))
    return total.hexdigest()[:16]


def locate(path: str, revision: str | None) -> Checkpoint:
    """The checkpoint at `path`, a folder or hub id; only file list and config.json are fetched.

    Raises:
        ConfigError: there is none, it is gated, or the hub is out of reach and there is no earlier download.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"target.revision={revision}: {path} is a folder; leave it out.")
        return _from_folder(folder, path, None, "folder")
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        raise ConfigError(f"target.path={path}: no such folder. Allowed: a folder, or a hub id ORG/NAME.")
    where = f"target.path={path}"
    try:
        with hub.asking(where, f"target.revision={revision}", _WITHOUT_HUB):
            info = huggingface_hub.HfApi().model_info(path, revision=revision, timeout=hub.TIMEOUT_S)
            config = huggingface_hub.hf_hub_download(path, "config.json", revision=info.sha)
    except hub.Unreachable as why:
        return _from_earlier_download(path, revision, why)
    names = frozenset(file.rfilename for file in info.siblings or ())
    return Checkpoint(
        location=path, revision=info.sha, files=names, config=_read_config(Path(config), path), source="hub"
    )


def _from_earlier_download(path: str, revision: str | None, why: hub.Unreachable) -> Checkpoint:
    found = huggingface_hub.try_to_load_from_cache(path, "config.json", revision=revision)
    if not isinstance(found, str):
        raise ConfigError(
            f"target.path={path}: the hub cannot be reached ({why}) and there is no earlier download."
            f" {_WITHOUT_HUB}"
        ) from why
    folder = Path(found).parent
    return _from_folder(folder, path, folder.name, "hub (earlier download)")


def _from_folder(folder: Path, path: str, revision: str | None, source: str) -> Checkpoint:
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"target.path={path}: has no config.json. Give the folder of a transformers model "
            "(config, weights, tokenizer)."
        )
    names = frozenset(file.name for file in folder.iterdir())
    return Checkpoint(
        location=str(folder),
        revision=revision,
        files=names,
        config=_read_config(folder / "config.json", path),
        source=source,
    )


def _read_config(file: Path, path: str) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"target.path={path}: its {file.name} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"target.path={path}: its {file.name} is not a JSON object.")
    return config


def readable_config(checkpoint: Checkpoint, path: str, trust_remote_code: bool) -> Any:
    """The transformers configuration of a checkpoint that the loop can serve, before any weight is fetched.

    Raises:
        ConfigError: it cannot be served, or only with `trust_remote_code`; says why and what to try.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    model_type = checkpoint.config.get("model_type")
    if model_type not in CONFIG_MAPPING and not trust_remote_code:
        if "auto_map" in checkpoint.config:
            raise ConfigError(
                f"target.path={path}: brings its own Python code for its architecture ({model_type}). "
                "Read that code; if you trust it, type target.trust_remote_code=true."
            )
        raise _refusal(path, f"the installed transformers does not know its model_type, {model_type!r}")
    try:
        config = AutoConfig.from_pretrained(
            checkpoint.location, revision=checkpoint.revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"target.path={path}: its config.json cannot be used: {error}") from error
    reason = why_refused(
        config.get_text_config(), remote="auto_map" in checkpoint.config and trust_remote_code
    )
    text = config.get_text_config()
    if not reason and text is not config and Window.of(text) is not None:
        reason = (
            f"its text model ({text.model_type}) has sliding_attention and lies within a {config.model_type},"
            " whose own masks allow for other inputs than text"
        )
    if reason:
        raise _refusal(path, reason)
    return config


def _refusal(path: str, reason: str) -> ConfigError:
    return ConfigError(
        f"target.path={path}: cannot be served: {reason}. Try a decoder-only model with full "
        "attention, such as target=llama31_8b, target=qwen3_4b or target=smollm2_135m."
    )


def why_refused(config: Any, remote: bool = False) -> str | None:
    """Why the loop cannot serve a model with this transformers `config`, or None where it can.

    Rows of its cache must be removable one by one and its positions explicit. `remote`: the architecture
    comes with the checkpoint, so transformers' own tables do not say what it is.
    """
    if getattr(config, "is_encoder_decoder", False):
        return f"it is an encoder-decoder ({config.model_type}); a causal language model is needed"
    if not remote:
        problem = _architecture_problem(config)
        if problem:
            return problem
    problem = _attention_problem(config)
    if problem:
        return problem
    if config.model_type in ("bloom", "mpt") or getattr(config, "alibi", False):
        return "its positions are ALiBi, which a token tree cannot set"
    if not remote and not _model_class(config)._supports_attention_backend:
        return f"its architecture ({config.model_type}) does not take transformers' attention interface"
    return None


def _attention_problem(config: Any) -> str | None:
    """Why the kinds of a model's layers rule it out."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if others := sorted(kinds - {"full_attention", "sliding_attention"}):
        return f"it has layers of {' and '.join(others)}; allowed are full_attention and sliding_attention"
    if "local" in getattr(config, "attention_layers", ()):
        return "it has layers of local attention; every layer must attend to the whole context"
    if "sliding_attention" not in kinds and (kinds or Window.of(config) is None):
        return None
    if config.model_type not in WINDOWED:
        return (
            f"its architecture ({config.model_type}) has sliding_attention, which is served for"
            f" {', '.join(WINDOWED)}"
        )
    return None


def _model_class(config: Any) -> Any:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _architecture_problem(config: Any) -> str | None:
    """Why transformers' classes rule a model out: no language-model head, or a recurrent state."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return f"its architecture ({config.model_type}) has no causal language-model head in transformers"
    if _model_class(config)._is_stateful:
        return f"its architecture ({config.model_type}) keeps a recurrent state, which cannot be rolled back"
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    named = config.architectures or []
    if named and not known.intersection(named):
        return f"its weights are those of {named[0]}, without a causal language-model head"
    return None
