"""A target with random weights and a byte tokenizer, made in memory: tiny, or of a real shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.target.spec import LoadedWeights, Progress, TargetSpec

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MAX_TOKENIZER_SIZE = 320
_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@configurable
class TinyTarget(TargetSpec):
    """A model whose weights are drawn from `seed`; tiny by default. It needs no file and no network."""

    name: str = "tiny"
    architecture: Literal["llama", "qwen2", "qwen3", "mixtral"] = "llama"
    num_layers: int = Field(default=2, ge=1, le=256)
    hidden_size: int = Field(default=64, ge=8, le=65536)
    intermediate_size: int | None = Field(default=None, ge=8)
    """Width of the MLP; None is twice `hidden_size`."""
    num_heads: int = Field(default=4, ge=1)
    num_kv_heads: int = Field(default=2, ge=1)
    head_dim: int = Field(default=16, ge=2, multiple_of=2)
    vocab_size: int = Field(default=259, ge=259)
    """Vocabulary of the model. The tokenizer has 256 bytes, three special tokens and extra ones up to 320;
    higher tokens decode to nothing."""
    tie_embeddings: bool = False
    spread: float = Field(default=0.2, gt=0, le=2)
    """Standard deviation of the weights. transformers' 0.02 gives flat logits and greedy output that repeats
    one token; with the default a few n-grams recur, and from 0.3 on almost none."""
    max_context: int | None = Field(default=2048, ge=2)
    weights: Literal["random"] = "random"

    @override
    def load(self, progress: Progress) -> LoadedWeights:
        # The weights are drawn on their device and in their dtype: 16 GB are not copied or converted.
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"target.num_kv_heads={self.num_kv_heads}: must divide target.num_heads={self.num_heads}."
            )
        progress(f"target {self.name}: random {self.architecture} weights, seed {self.seed}")
        model = self.random_model(self.shape(), self.resolved_device())
        source = f"random (seed {self.seed})"
        return self.describe(model, self._tokenizer(), source=source)

    @override
    def tokenizer(self, progress: Progress) -> tuple[Any, str | None]:
        return self._tokenizer(), None

    def _tokenizer(self) -> Any:
        return byte_tokenizer(min(self.vocab_size, _MAX_TOKENIZER_SIZE))

    @override
    def shape(self) -> Any:
        from transformers import CONFIG_MAPPING

        tokenizer = self._tokenizer()
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2} if self.architecture == "mixtral" else {}
        return CONFIG_MAPPING[self.architecture](
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size or 2 * self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_context or 2048,
            initializer_range=self.spread,
            tie_word_embeddings=self.tie_embeddings,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **experts,
        )


def byte_tokenizer(vocab_size: int, names: Sequence[str] = ()) -> Any:
    """A transformers tokenizer of 256 bytes, `<|endoftext|>`, `<|im_start|>`, `<|im_end|>` and extras, and
    then tokens with these names."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    extra = tuple(f"<|extra_{i}|>" for i in range(vocab_size - len(alphabet) - len(_SPECIAL)))
    backend.add_special_tokens([AddedToken(token, special=True) for token in (*_SPECIAL, *extra, *names)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=_SPECIAL[0],
        eos_token=_SPECIAL[2],
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
