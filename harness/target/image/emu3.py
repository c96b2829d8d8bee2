"""Emu3 (Wang et al. 2024, arXiv 2409.18869), which writes texts and images with one vocabulary.

transformers serves it with a causal LM of its own and a decoder from tokens to pixels. An image is opened by
its size, its rows end with a token each, and three more tokens follow the last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.target.checkpoint import ModelSource, locate
from harness.target.image.guidance import Guidance, Raster
from harness.target.image.guided import GuidedTarget
from harness.target.random_target import byte_tokenizer
from harness.target.spec import LoadedWeights, Picture, Progress, TargetSpec

_OPENS, _BEGINS, _CLOSES = "<|image start|>", "<|image token|>", "<|image end|>"
_ROW_END, _FILE_END = "<|extra_200|>", "<|extra_201|>"
_PIXEL = "<|visual token {:06d}|>"
_NOT_READ = {"device_map": None, "tensor_parallel": 1, "trust_remote_code": False}
"""Fields of any target that have no effect here, with the values that say so."""
_TEMPLATE = (
    "{{% for message in messages %}}{{{{ message.content }}}}{{% endfor %}}{opens}{height}*{width}{begins}"
)


@configurable
class ImageTarget(TargetSpec):
    """A checkpoint of Emu3 that paints images of one size."""

    height: int = Field(default=90, ge=1)
    """Rows of codebook entries."""
    width: int = Field(default=90, ge=1)
    """Entries of a row."""
    guidance: float = Field(default=3.0, ge=1)
    """The scale of classifier-free guidance; 1 is none."""
    negative_prompt: str = ""
    """The text of the companions; empty for none."""

    @override
    def shape(self) -> Any:
        return self._config(self.source)

    @override
    def load(self, progress: Progress) -> LoadedWeights:
        from transformers import AutoTokenizer, Emu3ForConditionalGeneration

        source, device = self.source, self.resolved_device()
        progress(f"target {self.name}: loading {self.path}")
        config = self._config(source)
        source.check_files(locate(str(self.path), self.revision))
        try:
            where = {"pretrained_model_name_or_path": str(self.path), "revision": self.revision}
            tokenizer = AutoTokenizer.from_pretrained(**where)
            dtype = self.placement.torch_dtype(config)
            whole = Emu3ForConditionalGeneration.from_pretrained(**where, dtype=dtype).to(device)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"target.path={self.path}: cannot be loaded: {error}") from error
        return self.opened(whole, tokenizer, "checkpoint")

    def _config(self, source: ModelSource) -> Any:
        from transformers import Emu3Config

        if source.path is None:
            raise ConfigError(
                "target.path: not given. Type target.path=ORG/NAME (hub) or target.path=FOLDER."
            )
        for name, usual in _NOT_READ.items():
            if (given := getattr(self, name)) != usual:
                raise ConfigError(f"target.{name}={given}: image targets do without it; leave it out")
        found = locate(source.path, source.revision)
        if found.config.get("model_type") != "emu3" or source.is_random:
            raise ConfigError(
                f"target.path={source.path}: target=emu3 reads weights of model_type emu3, and this is"
                f" {found.config.get('model_type')!r}; a random one is target=tiny_image, and a model of"
                " texts target=hub"
            )
        return Emu3Config.from_pretrained(found.location, revision=found.revision)

    def opened(self, whole: Any, tokenizer: Any, source: str) -> LoadedWeights:
        """A loaded Emu3ForConditionalGeneration as a causal LM under guidance, with what decodes its
        images."""
        from transformers import Emu3ForCausalLM

        tokenizer.chat_template = _TEMPLATE.format(
            opens=_OPENS, begins=_BEGINS, height=self.height, width=self.width
        )
        with torch.device("meta"):
            model = Emu3ForCausalLM(whole.config.get_text_config())
        model.model, model.lm_head = whole.model.text_model, whole.lm_head
        vocabulary = tokenizer.get_vocab()
        guidance = self._guidance(vocabulary, tokenizer)
        assert guidance.raster is not None
        loaded = self.describe(model, tokenizer, source=source)
        size = {"height": self.height, "width": self.width, "guidance": self.guidance}
        return dataclasses.replace(
            loaded,
            # The companion of a sequence is cached, too.
            card={
                **loaded.card,
                "cache_bytes_per_token": 2 * loaded.card["cache_bytes_per_token"],
                "image": size,
            },
            make=partial(GuidedTarget, guidance=guidance),
            paint=painter(whole.model.vqmodel.eval().requires_grad_(False), guidance.raster),
        )

    def _guidance(self, vocabulary: Mapping[str, int], tokenizer: Any) -> Guidance:
        pixels: list[int] = []
        while (name := _PIXEL.format(len(pixels))) in vocabulary:
            pixels.append(vocabulary[name])
        needed = (_OPENS, _BEGINS, _CLOSES, _ROW_END, _FILE_END)
        if missing := [name for name in needed if name not in vocabulary] or ([] if pixels else [name]):
            raise ConfigError(
                f"target.path={self.path}: its tokenizer has no {missing[0]}, which an image of Emu3 needs;"
                " give a checkpoint that paints, such as BAAI/Emu3-Gen-hf"
            )
        opens, begins, closes, row_end, file_end = (vocabulary[name] for name in needed)
        raster = Raster(
            height=self.height,
            width=self.width,
            pixels=pixels,
            row_end=row_end,
            ending=(file_end, closes, tokenizer.eos_token_id),
        )
        negative = tokenizer.encode(self.negative_prompt) if self.negative_prompt else []
        return Guidance(
            scale=self.guidance, opens=opens, begins=begins, negative=tuple(negative), raster=raster
        )


@configurable
class TinyImageTarget(ImageTarget):
    """An Emu3 whose weights are drawn from `seed`; it needs no file and no network."""

    name: str = "tiny_image"
    height: int = Field(default=8, ge=1)
    width: int = Field(default=8, ge=1)
    num_layers: int = Field(default=2, ge=1)
    hidden_size: int = Field(default=64, ge=16, multiple_of=16)
    num_pixels: int = Field(default=64, ge=2)
    """Entries of the codebook."""
    num_clones: int = Field(default=1, ge=1)
    """So many entries in a row have almost the same embedding, as near-equal entries of a codebook do."""
    spread: float = Field(default=0.2, gt=0, le=2)
    """Standard deviation of the weights."""

    @override
    def tokenizer(self, progress: Progress) -> tuple[Any, str | None]:
        return self._tokenizer(), None

    def _tokenizer(self) -> Any:
        pixels = [_PIXEL.format(number) for number in range(self.num_pixels)]
        tokenizer = byte_tokenizer(259, [_OPENS, _BEGINS, _CLOSES, _ROW_END, _FILE_END, *pixels])
        tokenizer.chat_template = _TEMPLATE.format(
            opens=_OPENS, begins=_BEGINS, height=self.height, width=self.width
        )
        return tokenizer

    @override
    def shape(self) -> Any:
        from transformers import Emu3Config

        tokenizer = self._tokenizer()
        text = {
            "vocab_size": len(tokenizer),
            "hidden_size": self.hidden_size,
            "intermediate_size": 2 * self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": self.max_context or 2048,
            "initializer_range": self.spread,
            "attention_dropout": 0.0,
            "bos_token_id": tokenizer.eos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        pictures = {
            "codebook_size": self.num_pixels,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [1],
            "hidden_size": 32,
            "temporal_downsample_factor": 1,
        }
        return Emu3Config(text_config=text, vq_config=pictures, vocabulary_map=tokenizer.get_vocab())

    @override
    def load(self, progress: Progress) -> LoadedWeights:
        from transformers import Emu3ForConditionalGeneration

        progress(f"target {self.name}: random emu3 weights, seed {self.seed}")
        device, tokenizer = self.resolved_device(), self._tokenizer()
        with torch.random.fork_rng(), device:
            torch.manual_seed(self.seed)
            whole = Emu3ForConditionalGeneration(self.shape()).to(self.placement.torch_dtype(None))
            if self.num_clones > 1:
                self._clone(whole, tokenizer.convert_tokens_to_ids(_PIXEL.format(0)))
        return self.opened(whole, tokenizer, f"random (seed {self.seed})")

    @torch.no_grad()
    def _clone(self, whole: Any, first: int) -> None:
        """Give neighbours of the codebook the same embedding and output row, but for a hundredth of noise."""
        here = slice(first, first + self.num_pixels)
        for weight in (whole.get_input_embeddings().weight, whole.lm_head.weight):
            groups = weight[here][:: self.num_clones].repeat_interleave(self.num_clones, 0)[: self.num_pixels]
            weight[here] = groups + 0.01 * weight[here]


def painter(decoder: Any, raster: Raster) -> Callable[[Sequence[int]], Picture | None]:
    """Decodes the tokens of an answer with an Emu3VQVAE; None where they are not a whole image."""

    @torch.no_grad()
    def paint(tokens: Sequence[int]) -> Picture | None:
        codes = raster.codes(tokens)
        if codes is None:
            return None
        values = decoder.decode(torch.tensor([codes], device=decoder.device))[0].float()
        # The decoder's range is -1 to 1.
        levels = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        picture: Picture = levels.permute(1, 2, 0).tolist()
        return picture

    return paint
