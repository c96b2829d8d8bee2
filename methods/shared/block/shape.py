"""Everything that determines the tensors and the arithmetic of a block drafter, every convention by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from harness.drafting.drafter import HiddenTap

Layout = Literal["z-lab", "DeepSpec", "speculators", "SpecForge", "random"]
"""Whose layout a checkpoint has."""
Kind = Literal["dflash", "dflash2", "dspark"]
"""The method that a head belongs to, by the parts that it has."""
Markov = Literal["vanilla", "gated", "rnn"]
"""How a correction head mixes the token before a slot with the slot's state."""


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """The network of a block drafter and the conventions that its weights were trained with."""

    layout: Layout
    hidden_size: int
    """That of the drafter and of the target, which are equal."""
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    """The target's."""
    draft_vocab_size: int
    """Number of tokens that can be drafted."""
    block_size: int
    """Inputs of a block: the pending token (the anchor), then mask tokens."""
    mask_token_id: int
    sample_from_anchor: bool
    """Whether the anchor's own slot drafts the first token, so that a block drafts as many tokens as it has
    inputs; if not, slot 0 drafts nothing and slot j the token at its own position."""
    tap_layers: tuple[int, ...]
    """The target's blocks, as the checkpoint numbers them; -1 is the embedding."""
    tap_point: Literal["output", "input"]
    """Whether a number names the output of the block, or the state that enters it. speculators and vLLM index
    hidden_states, where a block's input has its number; the others number outputs."""
    sliding: tuple[bool, ...]
    """Per layer, whether it sees only a window."""
    causal: tuple[bool, ...]
    """Per layer, whether a slot sees only the slots before it and itself."""
    window: int | None = None
    """Rows that a sliding layer sees."""
    window_bound: Literal["slot", "anchor"] = "slot"
    """Whether the window of a slot ends at the slot, or all slots of a block see the window of its anchor, as
    speculators trains."""
    qk_norm: bool = True
    attention_bias: bool = False
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: int = 32768
    embedding_scale: float = 1.0
    """Factor of the block's embeddings."""
    output_multiplier: float = 1.0
    """Factor of the logits."""
    softcap: float | None = None
    """Logits are squeezed to softcap * tanh(logits / softcap), after the multiplier."""
    markov: Markov | None = None
    """DSpark's correction head; None: logits are not corrected."""
    markov_rank: int = 0
    confidence: bool = False
    """Whether a head estimates for every slot the probability that its token is kept."""
    confidence_reads_markov: bool = False
    """Whether it reads the embedding of the token before the slot, beside the slot's state."""
    conv_kernel: int = 0
    """Taps of DFlash2's convolutions; 0: there are none."""
    conv_group: int = 1
    """Channels that share a dynamic kernel."""
    selector_rank: int = 0
    """Rank of DFlash2's candidate selector; 0: there is none."""
    selector_top_k: int = 0
    """Candidates per slot."""
    own_embedding: bool = False
    """The checkpoint has an embedding; else the target's is used."""
    own_lm_head: bool = False
    """The checkpoint has an LM head; else the target's is used, over the draft vocabulary."""

    @property
    def kind(self) -> Kind:
        """The method that this head belongs to."""
        if self.conv_kernel or self.selector_rank:
            return "dflash2"
        return "dspark" if self.markov or self.confidence else "dflash"

    @property
    def feature_size(self) -> int:
        """F, the width of the target's features of one token."""
        return len(self.tap_layers) * self.hidden_size

    @property
    def first_slot(self) -> int:
        """The slot that drafts the token after the anchor."""
        return 0 if self.sample_from_anchor else 1

    @property
    def taps(self) -> tuple[HiddenTap, ...]:
        """The target's states that `fc` reads, in order."""
        return tuple(_tap(layer, self.tap_point) for layer in self.tap_layers)


def _tap(layer: int, point: str) -> HiddenTap:
    return HiddenTap(0, "input") if layer < 0 else HiddenTap(layer, point)


def spread_taps(num_taps: int, num_layers: int) -> tuple[int, ...]:
    """z-lab's blocks where a checkpoint names none: spread from block 1 to the third from the end."""
    if num_taps == 1:
        return (num_layers // 2,)
    span = num_layers - 4
    return tuple(max(round(1 + place * span / (num_taps - 1)), 0) for place in range(num_taps))
