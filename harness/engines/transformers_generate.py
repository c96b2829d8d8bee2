"""Rungs of the baseline ladder: other people's loops over the same weights, run as their users run them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from typing_extensions import override

from harness.config import configurable
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Generation, Request
from harness.decoding.faults import method_code
from harness.decoding.forced_tokens import ForcedTokens
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams, TokenSampler
from harness.drafting.drafter import Drafter
from harness.system.clock import synchronize
from harness.target.spec import TargetSpec

_NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "guidance_scale"), 1.0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), 0),
    **dict.fromkeys(("min_new_tokens", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id")),
    **dict.fromkeys(("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens")),
    **dict.fromkeys(("sequence_bias", "stop_strings", "max_time", "watermarking_config", "penalty_alpha")),
    **dict.fromkeys(("remove_invalid_values", "renormalize_logits", "token_healing"), False),
    **dict.fromkeys(("num_beams", "num_return_sequences"), 1),
    **dict.fromkeys(("min_p", "top_h", "epsilon_cutoff", "eta_cutoff"), 0.0),
    "typical_p": 1.0,
}
"""Fields of a generation config that change tokens, with neutral values; `DecodingParams` has the others."""


def not_applied(model: Any) -> dict[str, Any]:
    """What a model's generation config asks for and neither arms nor rungs do; JSON types."""
    asked = model.generation_config.to_dict() if model.generation_config is not None else {}
    found = {name: asked.get(name) for name in _NEUTRAL}
    return {name: value for name, value in found.items() if value not in (None, _NEUTRAL[name], [])}


class CoupledNoise(LogitsProcessor):  # type: ignore[misc]
    """Has `generate` draw what our loop draws: the arg max of the returned scores is our loop's token."""

    def __init__(self, sampler: TokenSampler, num_prompt_tokens: int) -> None:
        self._sampler, self._start = sampler, num_prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Processed and perturbed scores [1, V] for the token after `input_ids` [1, L]."""
        index = torch.tensor([[input_ids.shape[1] - self._start]], device=scores.device)
        return self._sampler.params.process(scores) + self._sampler.gumbel(index)[:, 0]


class GivenTokens(LogitsProcessor):  # type: ignore[misc]
    """Has `generate` write the tokens that a request forces; the last of the processors."""

    def __init__(self, forced: ForcedTokens, num_prompt_tokens: int) -> None:
        self._forced, self._start = forced, num_prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores [1, V] for the token after `input_ids` [1, L], where it is forced with one finite
        entry."""
        token = self._forced.at(input_ids[0, self._start :].tolist())
        if token is None:
            return scores
        only = torch.full_like(scores, -torch.inf)
        only[:, token] = 0
        return only


@configurable
class Rung(ABC):
    """Base of all rungs; also a `Method`, so that an engine may be asked to decode with it."""

    name: ClassVar[str]
    samples: ClassVar[bool] = True
    in_process: ClassVar[bool] = True
    """Whether its forwards are transformers', which this process can compute again."""

    @property
    def knowledge(self) -> str:
        """A rung remembers nothing from one call to the next."""
        return "call"

    @property
    def training_prompts(self) -> Sequence[Path]:
        """A rung has no head that was trained here."""
        return ()

    def card(self) -> dict[str, Any]:
        """A rung loads nothing of its own."""
        return {}

    @property
    def width(self) -> int:
        """The most tokens of one of its target forwards."""
        return 1

    def bind(self, target: TargetSpec, note: Callable[[str], None]) -> None:  # noqa: B027 - a hook
        """Get ready for a target, before anything is timed.

        Raises:
            ConfigError: it does not fit.
        """

    def begin_run(self, logs: Path | None) -> None:  # noqa: B027 - a hook
        """A run begins; `logs` is the folder for what its programs write."""

    def close(self) -> None:  # noqa: B027 - a hook
        """End what was started."""

    @abstractmethod
    def generate(self, engine: DecodingLoop, request: Request, params: DecodingParams) -> Generation:
        """Decode one request with `engine`'s weights, end tokens and limits: ids and total time only."""


class _TransformersRung(Rung):
    name = ""

    def options(self) -> dict[str, Any]:
        """Further arguments of transformers' `GenerationConfig`."""
        return {}

    def _config(self, engine: DecodingLoop, params: DecodingParams, num_prompt: int) -> GenerationConfig:
        # An id outside the vocabulary switches the end off; None would mean the model's own end tokens.
        ends = [engine.target.vocab_size] if params.ignore_end_token else sorted(engine.end_token_ids)
        return GenerationConfig(
            # No filters of its own; ours come with the noise.
            do_sample=False,
            repetition_penalty=1.0,
            max_new_tokens=min(params.max_new_tokens, engine.max_context - num_prompt),
            eos_token_id=ends,
            pad_token_id=0,
            **self.options(),
        )

    @override
    def generate(self, engine: DecodingLoop, request: Request, params: DecodingParams) -> Generation:
        target, num_prompt = engine.target, len(request.prompt)
        prompt = torch.tensor([list(request.prompt)]).to(target.device)
        config = self._config(engine, params, num_prompt)
        noise = LogitsProcessorList()
        if not params.greedy:
            # Redundant beside do_sample=False, but explicit: generate itself must filter nothing.
            config.top_k, config.top_p, config.temperature = 0, 1.0, 1.0
            sampler = TokenSampler(params, [request.key], target.vocab_size, target.device)
            noise.append(CoupledNoise(sampler, num_prompt))
        if request.forced is not None:
            noise.append(GivenTokens(request.forced, num_prompt))
        target.set_taps(())
        target.use_kernel("sdpa")
        # What a config does not set, `generate` takes from the model's own.
        own, target.model.generation_config = target.model.generation_config, GenerationConfig()
        try:
            synchronize(target.device)
            begin = time.perf_counter_ns()
            with method_code():
                output = target.model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    generation_config=config,
                    logits_processor=noise,
                )
            synchronize(target.device)
            total_ns = time.perf_counter_ns() - begin
        finally:
            target.model.generation_config = own
            target.use_kernel()
        ids = output[0, num_prompt:].tolist()
        ended = not params.ignore_end_token and ids[-1] in engine.end_token_ids
        full = len(ids) >= params.max_new_tokens
        return Generation(
            output_ids=ids,
            stop="end" if ended else "cap" if full else "context",
            total_ns=total_ns if engine.timed else 0,
            latency_ns=total_ns if engine.timed else 0,
        )


@configurable
class EagerLoop(Rung):
    """Our own loop with dynamic steps alone."""

    name: ClassVar[str] = "vanilla (eager)"
    drafter: Drafter
    """The drafter that drafts nothing."""

    @override
    def generate(self, engine: DecodingLoop, request: Request, params: DecodingParams) -> Generation:
        self.drafter.bind(engine.target)
        with engine.target.steps.only("dynamic"):
            made = engine.generate([request], self.drafter, params, Coupled())[0]
        return Generation(
            output_ids=made.output_ids,
            stop=made.stop,
            total_ns=made.total_ns,
            latency_ns=made.latency_ns,
        )


@configurable
class Generate(_TransformersRung):
    """`transformers.generate` with its dynamic cache and SDPA."""

    name: ClassVar[str] = "transformers.generate"


@configurable
class PromptLookup(_TransformersRung):
    """`transformers.generate(prompt_lookup_num_tokens=...)`, with the sizes of our n-gram method."""

    name: ClassVar[str] = "transformers.prompt_lookup"
    draft_length: int = Field(default=10, ge=1)
    max_ngram: int = Field(default=3, ge=1)

    @property
    @override
    def width(self) -> int:
        return 1 + self.draft_length

    @override
    def options(self) -> dict[str, Any]:
        return {
            "prompt_lookup_num_tokens": self.draft_length,
            "max_matching_ngram_size": self.max_ngram,
        }
