"""The specification of a target, and loading it: a causal language model, its tokenizer and a card."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from harness.config import ConfigError, configurable
from harness.system import tensor_parallel
from harness.target.chat_template import ChatFormat
from harness.target.checkpoint import Checkpoint, ModelSource, fingerprint
from harness.target.footprint import cache_bytes_per_token, expert_counts, step_bytes
from harness.target.model import Target
from harness.target.placement import Kernels, Placement

Picture = Sequence[Sequence[Sequence[int]]]
"""Red, green and blue, 0 to 255, of every pixel, row by row."""
Progress = Callable[[str], None]
"""Takes a line that tells the user what is being done."""


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """A model that is ready to run (eval mode, no gradients), and what belongs to it."""

    model: Any
    tokenizer: Any
    card: dict[str, Any]
    """What was loaded, in JSON types; see `card_of`."""
    end_token_ids: tuple[int, ...]
    """The tokens that end an answer, sorted."""
    max_context: int
    """Tokens of prompt and answer together."""
    make: Callable[..., Target] = Target
    """Makes the target that is decoded with; it takes the arguments of `Target`."""
    paint: Callable[[Sequence[int]], Picture | None] | None = None
    """Decodes the tokens of an answer into a picture, for models that write images; None where they are not
    a whole one."""


@configurable
class TargetSpec:
    """Which model is the target, how it is loaded and how it is prompted.

    The fields are flat, as in `target.dtype=bfloat16`. Code that needs one subject takes that part of them:
    `source`, `placement`, `kernels` or `chat`.
    """

    name: str = ""
    """The name in tables; the last part of `path` if empty."""
    path: str | None = None
    """Hub id or folder."""
    revision: str | None = None
    """Commit, tag or branch on the hub; None is the newest."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """The dtype of the weights; `auto` is the checkpoint's."""
    device: str = "auto"
    """`auto` is the first CUDA device, or the CPU if there is none."""
    device_map: str | dict[str, int | str] | None = None
    """transformers' `device_map`: whole layers are spread over several devices."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Processes under torchrun, each of which holds a part of every layer, by transformers' plan."""
    linear: Literal["auto", "packed", "joined", "plain"] = "auto"
    """`packed` lays out float32 weights on a CPU for oneDNN, `joined` multiplies sibling layers as one on
    CUDA (see `harness.runtime.packed_linear`), `plain` changes nothing, `auto` takes what is possible."""
    cache: Literal["auto", "dynamic", "static"] = "auto"
    """The slots that a verify step reads: those in use (`dynamic`), or all that are allocated (`static`), so
    that every step is the same program. `auto` takes for every width whichever is measured to be faster."""
    compile: bool = False
    """Whether static steps and steps of heads may be compiled (see `harness.runtime.programs.step`)."""
    attention: Literal["grouped", "sdpa", "eager"] = "grouped"
    """`grouped` is the harness's kernel, put in after loading; the others are transformers'."""
    template: str | None = None
    """A NAME in harness/target/templates/NAME.jinja, or a .jinja file; None is the model's own template."""
    system_prompt: str | None = None
    """Put before every conversation that has no system prompt."""
    thinking: bool | None = None
    """The template's `enable_thinking`; None where it has no such switch."""
    stop_tokens: tuple[str, ...] = ()
    """Tokens that end an answer, in addition to the model's own."""
    max_context: int | None = Field(default=None, ge=2)
    """Tokens of prompt and answer together; None is the model's limit."""
    trust_remote_code: bool = False
    """Whether Python code of the checkpoint may run."""
    allow_pickle: bool = False
    """Whether pickled weights may be read, which can run code."""
    weights: Literal["checkpoint", "random"] = "checkpoint"
    """`random` takes only the shape from the checkpoint: for benchmarks of speed, as answers mean nothing."""
    seed: int = Field(default=0, ge=0)
    """Seed of random weights."""
    heads: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Draft heads that fit the target, by kind: their `path` and settings that methods take over."""

    @field_validator("attention", mode="before")
    @classmethod
    def _takes_trees(cls, kernel: object) -> object:
        if str(kernel).startswith("flash_attention"):
            raise ValueError("cannot take the mask of a token tree; allowed: grouped, sdpa, eager")
        return kernel

    def __post_init__(self) -> None:
        self.name = self.name or Path(self.path or "target").name

    @property
    def source(self) -> ModelSource:
        """Which weights are loaded."""
        return ModelSource(
            path=self.path,
            revision=self.revision,
            weights=self.weights,
            seed=self.seed,
            trust_remote_code=self.trust_remote_code,
            allow_pickle=self.allow_pickle,
        )

    @property
    def placement(self) -> Placement:
        """Where the weights are held, and in which dtype."""
        return Placement(
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            tensor_parallel=self.tensor_parallel,
        )

    @property
    def kernels(self) -> Kernels:
        """How a forward is computed."""
        return Kernels(attention=self.attention, linear=self.linear, cache=self.cache, compile=self.compile)

    @property
    def chat(self) -> ChatFormat:
        """How messages become a prompt, and which tokens end an answer."""
        return ChatFormat(
            name=self.name,
            template=self.template,
            system_prompt=self.system_prompt,
            thinking=self.thinking,
            stop_tokens=self.stop_tokens,
        )

    @property
    def baseline(self) -> str:
        """The name of vanilla decoding in tables, see `Kernels.baseline`."""
        return self.kernels.baseline

    def resolved_device(self) -> torch.device:
        """The device of the weights, see `Placement.resolved_device`."""
        return self.placement.resolved_device(self.weights)

    def shape(self) -> Any:
        """transformers' configuration of the model, without its weights; raises what `load` raises."""
        return self.source.find()[1]

    def tokenizer(self, progress: Progress) -> tuple[Any, str | None]:
        """The tokenizer, and the folder or hub id of the weights; None where they are random."""
        checkpoint, _ = self.source.find()
        progress(f"target {self.name}: reading the tokenizer of {self.path}")
        return self.source.tokenizer(checkpoint), None if self.source.is_random else checkpoint.location

    def load(self, progress: Progress) -> LoadedWeights:
        """Fetch and load the model; may take minutes and use the network.

        Raises:
            ConfigError: there is no such model, it cannot be served, or a field does not fit it.
            torch.OutOfMemoryError: it does not fit the device.
        """
        device = self.resolved_device()
        progress(f"target {self.name}: looking for {self.path}")
        source = self.source
        checkpoint, config = source.find()
        source.check_files(checkpoint)
        self.placement.check_parallel(config, self.weights, self.kernels)
        try:
            tokenizer = source.tokenizer(checkpoint)
            place = device if self.device_map is None else f"device_map {self.device_map}"
            dtype = dtype_name(self.placement.torch_dtype(config))
            progress(f"target {self.name}: loading {self.weights} weights, {dtype}, {place}")
            if source.is_random:
                model = self.random_model(config, device)
            else:
                model = self._read(checkpoint, config, device)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"target.path={self.path}: cannot be loaded: {error}") from error
        label = f"random (seed {self.seed})" if source.is_random else checkpoint.source
        loaded = self.describe(model, tokenizer, source=label, revision=checkpoint.revision)
        folder = Path(checkpoint.location)
        if source.is_random or not folder.is_dir():
            return loaded
        return dataclasses.replace(loaded, card={**loaded.card, "fingerprint": fingerprint(folder)})

    def _read(self, checkpoint: Checkpoint, config: Any, device: torch.device) -> Any:
        """The model with the checkpoint's weights, on its devices."""
        model = self.source.read(
            checkpoint,
            dtype=self.placement.torch_dtype(config),
            device_map=self.device_map,
            attn_implementation=self.kernels.attn_implementation,
            **tensor_parallel.sharded(self.tensor_parallel),
        )
        return model if self.placement.is_spread else model.to(device)

    def random_model(self, config: Any, device: torch.device) -> Any:
        """A model of this shape with random weights, see `ModelSource.random_model`."""
        return self.source.random_model(
            config,
            device,
            dtype=self.placement.torch_dtype(config),
            attn_implementation=self.kernels.attn_implementation,
        )

    def describe(
        self, model: Any, tokenizer: Any, *, source: str, revision: str | None = None
    ) -> LoadedWeights:
        """Put a loaded model into its final state and write its card, see `card_of`."""
        model.eval().requires_grad_(False)
        max_context = context_limit(model.config.get_text_config(), self.name, self.max_context)
        card = {"source": source, "path": self.path, "revision": revision, **card_of(model, self)}
        return LoadedWeights(
            model=model,
            tokenizer=tokenizer,
            card={**card, "max_context": max_context},
            end_token_ids=self.chat.end_tokens(model, tokenizer),
            max_context=max_context,
        )


def card_of(model: Any, spec: TargetSpec) -> dict[str, Any]:
    """The facts of a loaded model and of how it computes, in JSON types.

    step_bytes: weights that a single-token step reads, that is, all except embeddings that are only looked
    up, and of experts only those that one token uses. attention, cache, compile: fields of the spec.
    seed: of random weights. num_experts, experts_per_token: of mixtures. tensor_parallel: if above 1.
    The caller adds source, path, revision and max_context, and for a folder its fingerprint.
    """
    config = model.config.get_text_config()
    experts = expert_counts(config)
    card = {
        "dtype": dtype_name(model.dtype),
        "device": ",".join(sorted({str(p.device) for p in model.parameters()})),
        "architecture": type(model).__name__,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "step_bytes": step_bytes(model, experts),
        "cache_bytes_per_token": cache_bytes_per_token(model),
        "num_layers": config.num_hidden_layers,
        "vocab_size": model.get_output_embeddings().weight.shape[0],
        "attention": spec.attention,
        "cache": spec.cache,
        "compile": spec.compile,
        "quantisation": _quantisation(model.config),
        "seed": spec.seed if spec.source.is_random else None,
        "num_experts": experts and experts[0],
        "experts_per_token": experts and experts[1],
    }
    return card if spec.tensor_parallel == 1 else {**card, "tensor_parallel": spec.tensor_parallel}


def context_limit(config: Any, name: str, wanted: int | None) -> int:
    """Tokens of prompt and answer together: the `wanted` number, or the limit that the model's config states.

    Raises:
        ConfigError: more is wanted than the model takes, or neither number is given.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if wanted is None and limit is None:
        raise ConfigError(f"target.max_context: {name}'s config does not tell it; type target.max_context=N.")
    if wanted is not None and limit is not None and wanted > limit:
        raise ConfigError(f"target.max_context={wanted}: {name} takes at most {limit}.")
    return int(wanted or limit or 0)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def _quantisation(config: Any) -> str | None:
    """Method and bits of a quantised checkpoint, or None."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    fields = found if isinstance(found, dict) else found.to_dict()
    bits = fields.get("bits")
    return str(fields.get("quant_method", "unknown")) + (f" {bits} bit" if bits else "")
