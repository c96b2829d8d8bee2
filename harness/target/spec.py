"""Load a target: a causal language model, its tokenizer, and a card that says what was loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from harness.config import ConfigError, configurable, near
from harness.system import processes, tensor_parallel
from harness.target.checkpoint import Checkpoint, fingerprint, locate, readable_config
from harness.target.footprint import cache_bytes_per_token, expert_counts, step_bytes

Progress = Callable[[str], None]
"""Takes a line for the user (not a result)."""


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """A model that is ready to run (eval, no gradients), and what belongs to it.

    card: JSON types, see `describe`. end_token_ids: sorted. max_context: tokens, prompt and answer.
    """

    model: Any
    tokenizer: Any
    card: dict[str, Any]
    end_token_ids: tuple[int, ...]
    max_context: int


@configurable
class TargetSpec:
    """Which model is the target, and how it is loaded and spoken to.

    name: in tables; the last part of `path` where empty. path: hub id or folder. revision: of the hub.
    dtype: `auto` is what the checkpoint says. device: `auto` is the first CUDA device, else the CPU.
    device_map: transformers', whole layers over several devices. tensor_parallel: processes under torchrun
    that hold a part of every layer each, by transformers' plan for the model. linear: `packed` lays float32
    weights on a CPU out for oneDNN, `joined` has siblings multiply as one on CUDA (see
    `harness.runtime.packed_linear`),
    `plain` leaves them, `auto` does what it can.
    cache: what a verify step reads, the slots in use (`dynamic`) or all that are allocated (`static`), so
    that every step is the same program; `auto` takes for every width what is found to be fastest before a
    run. compile: that program may be compiled too, and so are steps of heads (see
    `harness.runtime.compiled_step`).
    attention: `grouped` is the harness's kernel, put in after loading; the others are transformers'.
    template: NAME of harness/templates/NAME.jinja or a file; None is the model's own. system_prompt: put
    before a conversation that has none. thinking: the template's `enable_thinking`, None where it has none.
    stop_tokens: end tokens beside the model's own. max_context: at most the model's, which None means.
    trust_remote_code, allow_pickle: both can run code that comes with the checkpoint.
    weights: `random` builds the shape with weights from `seed` (benchmarks of shape; no answers).
    heads: draft heads that fit the target, by kind: `path` and settings that methods take over.
    """

    name: str = ""
    path: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    device_map: str | dict[str, int | str] | None = None
    tensor_parallel: int = Field(default=1, ge=1)
    linear: Literal["auto", "packed", "joined", "plain"] = "auto"
    cache: Literal["auto", "dynamic", "static"] = "auto"
    compile: bool = False
    attention: Literal["grouped", "sdpa", "eager"] = "grouped"
    template: str | None = None
    system_prompt: str | None = None
    thinking: bool | None = None
    stop_tokens: tuple[str, ...] = ()
    max_context: int | None = Field(default=None, ge=2)
    trust_remote_code: bool = False
    allow_pickle: bool = False
    weights: Literal["checkpoint", "random"] = "checkpoint"
    seed: int = Field(default=0, ge=0)
    heads: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @field_validator("attention", mode="before")
    @classmethod
    def _takes_trees(cls, kernel: object) -> object:
        if str(kernel).startswith("flash_attention"):
            raise ValueError("cannot take the mask of a token tree; allowed: grouped, sdpa, eager")
        return kernel

    def __post_init__(self) -> None:
        self.name = self.name or Path(self.path or "target").name

    @property
    def baseline(self) -> str:
        """What the tables call vanilla: `strong` if its steps are the fastest of all kinds that there are."""
        return "strong" if self.cache == "auto" and self.compile else "eager"

    def load(self, progress: Progress) -> LoadedWeights:
        """Fetch and load the model; may take minutes and use the network.

        Raises:
            ConfigError: there is no such model, it cannot be served, or a field does not fit it.
            torch.OutOfMemoryError: it does not fit the device.
        """
        device = self.resolved_device()
        progress(f"target {self.name}: looking for {self.path}")
        checkpoint, config = self._found()
        self._refuse_pickles(checkpoint)
        self._check_parallel(config)
        where = self._where(checkpoint)
        try:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(**where)
            place = device if self.device_map is None else f"device_map {self.device_map}"
            dtype = _plain(self._dtype(config))
            progress(f"target {self.name}: loading {self.weights} weights, {dtype}, {place}")
            if self.weights == "random":
                model = self.random_model(config, device)
            else:
                model = self._read(where, checkpoint, config, device)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"target.path={self.path}: cannot be loaded: {error}") from error
        random = self.weights == "random"
        source = f"random (seed {self.seed})" if random else checkpoint.source
        loaded = self.describe(model, tokenizer, source=source, revision=checkpoint.revision)
        folder = Path(checkpoint.location)
        if random or not folder.is_dir():
            return loaded
        return dataclasses.replace(loaded, card={**loaded.card, "fingerprint": fingerprint(folder)})

    def shape(self) -> Any:
        """transformers' configuration of the model, without its weights; see `load` for its errors."""
        return self._found()[1]

    def _found(self) -> tuple[Checkpoint, Any]:
        if self.path is None:
            raise ConfigError(
                "target.path: not given. Type target.path=ORG/NAME (hub) or target.path=FOLDER."
            )
        checkpoint = locate(self.path, self.revision)
        return checkpoint, readable_config(checkpoint, self.path, self.trust_remote_code)

    def describe(
        self, model: Any, tokenizer: Any, *, source: str, revision: str | None = None
    ) -> LoadedWeights:
        """Put a loaded model into its final state and write its card.

        The card: source, path, revision, dtype, device, architecture, num_parameters, step_bytes (weights
        that a single-token step reads: all but looked-up embeddings; of experts only those of one token),
        cache_bytes_per_token, num_layers, vocab_size, max_context, attention, cache (class),
        quantisation, seed (random weights), num_experts and experts_per_token (mixtures), and of
        a folder its fingerprint.
        """
        model.eval().requires_grad_(False)
        config = model.config.get_text_config()
        max_context = self._context(config)
        experts = expert_counts(config)
        card = {
            "source": source,
            "path": self.path,
            "revision": revision,
            "dtype": _plain(model.dtype),
            "device": ",".join(sorted({str(p.device) for p in model.parameters()})),
            "architecture": type(model).__name__,
            "num_parameters": sum(p.numel() for p in model.parameters()),
            "step_bytes": step_bytes(model, experts),
            "cache_bytes_per_token": cache_bytes_per_token(model),
            "num_layers": config.num_hidden_layers,
            "vocab_size": model.get_output_embeddings().weight.shape[0],
            "max_context": max_context,
            "attention": self.attention,
            "cache": self.cache,
            "compile": self.compile,
            "quantisation": _quantisation(model.config),
            "seed": self.seed if source.startswith("random") else None,
            "num_experts": experts and experts[0],
            "experts_per_token": experts and experts[1],
        }
        if self.tensor_parallel > 1:
            card["tensor_parallel"] = self.tensor_parallel
        return LoadedWeights(
            model=model,
            tokenizer=tokenizer,
            card=card,
            end_token_ids=self._end_tokens(model, tokenizer),
            max_context=max_context,
        )

    def random_model(self, config: Any, device: torch.device) -> Any:
        """A model of this shape, initialised by transformers from `seed`; torch's own stream is kept."""
        from transformers import AutoModelForCausalLM

        extra = {"trust_remote_code": True} if self.trust_remote_code else {}
        with torch.random.fork_rng(), device:
            torch.manual_seed(self.seed)
            return AutoModelForCausalLM.from_config(
                config, dtype=self._dtype(config), attn_implementation=self._kernel(), **extra
            )

    def resolved_device(self) -> torch.device:
        """The device of the weights (of the token ids, where `device_map` spreads them)."""
        if self.device_map is not None and (self.device != "auto" or self.weights == "random"):
            raise ConfigError(
                f"target.device_map={self.device_map}: not together with target.device={self.device} and "
                f"target.weights={self.weights}. Type target.device_map=null, or leave those two at "
                "auto and checkpoint."
            )
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ConfigError(
                f"target.device={self.device}: not a device. Allowed: auto, cpu, cuda, cuda:N."
            ) from error
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"target.device={self.device}: this machine has {torch.cuda.device_count()} CUDA devices. "
                "Type target.device=cpu or target.device=auto."
            )
        return device

    def _check_parallel(self, config: Any) -> None:
        """Raise ConfigError where the weights cannot be held by several processes as asked."""
        if self.tensor_parallel == 1:
            return
        unfit = {
            "device": self.device != "auto",
            "device_map": self.device_map is not None,
            "weights": self.weights == "random",
            "compile": self.compile,
            "linear": self.linear in ("packed", "joined"),
        }
        if named := [f"target.{name}={getattr(self, name)}" for name, is_set in unfit.items() if is_set]:
            raise ConfigError(
                f"target.tensor_parallel={self.tensor_parallel}: not together with {', '.join(named)}; leave"
                " those at auto, null, checkpoint and false"
            )
        processes.expect_processes(self.tensor_parallel)
        tensor_parallel.refuse_unfit(
            config, (config.architectures or ["this model"])[0], self.tensor_parallel
        )

    def _kernel(self) -> str:
        return "sdpa" if self.attention == "grouped" else self.attention

    def _where(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return {
            "pretrained_model_name_or_path": checkpoint.location,
            "revision": checkpoint.revision,
            "trust_remote_code": self.trust_remote_code,
        }

    def _refuse_pickles(self, checkpoint: Checkpoint) -> None:
        if self.weights == "random" or checkpoint.has_safetensors:
            return
        if not checkpoint.has_pickles:
            raise ConfigError(f"target.path={self.path}: has no weights (*.safetensors) to load.")
        if not self.allow_pickle:
            raise ConfigError(
                f"target.path={self.path}: has only pickled weights (*.bin), which can run code when read. "
                "If you trust where they come from, type target.allow_pickle=true."
            )

    def _dtype(self, config: Any) -> torch.dtype:
        """Of the weights; `auto` is what the checkpoint's config says, float32 where it says nothing."""
        wanted = getattr(torch, self.dtype) if self.dtype != "auto" else config.get_text_config().dtype
        return wanted or torch.float32

    def _read(self, where: dict[str, Any], checkpoint: Checkpoint, config: Any, device: torch.device) -> Any:
        """The model with the checkpoint's weights, every one of which must be there."""
        from transformers import AutoModelForCausalLM

        model, report = AutoModelForCausalLM.from_pretrained(
            **where,
            dtype=self._dtype(config),
            device_map=self.device_map,
            attn_implementation=self._kernel(),
            use_safetensors=checkpoint.has_safetensors,
            output_loading_info=True,
            **tensor_parallel.sharded(self.tensor_parallel),
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ConfigError(
                f"target.path={self.path}: {len(missing)} tensors are missing from its weights, the first is "
                f"{missing[0]!r}. It is another kind of model, or an incomplete copy."
            )
        return model if self.device_map is not None or self.tensor_parallel > 1 else model.to(device)

    def _context(self, config: Any) -> int:
        limit = getattr(config, "max_position_embeddings", None)
        if self.max_context is None and limit is None:
            raise ConfigError(
                f"target.max_context: {self.name}'s config does not tell it; type target.max_context=N."
            )
        if self.max_context is not None and limit is not None and self.max_context > limit:
            raise ConfigError(f"target.max_context={self.max_context}: {self.name} takes at most {limit}.")
        return int(self.max_context or limit or 0)

    def _end_tokens(self, model: Any, tokenizer: Any) -> tuple[int, ...]:
        own = model.generation_config.eos_token_id if model.generation_config is not None else None
        found = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        vocab = tokenizer.get_vocab()
        for token in self.stop_tokens:
            if token not in vocab:
                close = near(token, tokenizer.get_added_vocab())
                raise ConfigError(
                    f"target.stop_tokens: {token!r} is not one token of {self.name}.{close} "
                    "Allowed: any entry of its vocabulary."
                )
            found.add(vocab[token])
        return tuple(sorted(found))


def _plain(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def _quantisation(config: Any) -> str | None:
    """Method and bits of a quantised checkpoint."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    fields = found if isinstance(found, dict) else found.to_dict()
    bits = fields.get("bits")
    return str(fields.get("quant_method", "unknown")) + (f" {bits} bit" if bits else "")
