"""DSpark's heads (arXiv 2607.05147): a correction of a slot's logits by the token before it, and confidence.

Both read what is known before a slot's own token is drawn, so that a draft that ends where confidence is low
keeps the output's distribution.

Shapes: any leading dimensions, H hidden size, r rank, V draft vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.shared.block.shape import BlockShape


class MarkovHead(nn.Module):
    """Adds a bias of low rank to a slot's logits, from the token before it.

    `vanilla`: the token's embedding alone; `gated`: times a gate that also reads the slot's state; `rnn`: a
    recurrent state over the tokens of the block.
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        size, rank, self.kind = shape.hidden_size, shape.markov_rank, shape.markov
        self.rank = rank
        self.markov_w1 = nn.Embedding(shape.vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, shape.draft_vocab_size, bias=False)
        self.gate_proj = nn.Linear(size + rank, rank) if self.kind == "gated" else None
        self.joint_proj = nn.Linear(2 * rank + size, 3 * rank) if self.kind == "rnn" else None

    def start(self, states: Tensor) -> Tensor:
        """The recurrent state [..., r] before the first drafted slot, whose states are [..., H]."""
        return states.new_zeros(*states.shape[:-1], self.rank)

    def forward(self, previous: Tensor, states: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The bias [..., V] of a slot's logits, and the next recurrent state [..., r].

        previous: [...] int64, the token before the slot, as an id of the target. states: [..., H].
        """
        known = self.markov_w1(previous)
        if self.gate_proj is not None:
            known = known * torch.sigmoid(self.gate_proj(torch.cat([states, known], dim=-1)))
        elif self.joint_proj is not None:
            joint = self.joint_proj(torch.cat([memory, known, states], dim=-1))
            gate, candidate, output = joint.chunk(3, dim=-1)
            gate = torch.sigmoid(gate)
            memory = gate * memory + (1 - gate) * torch.tanh(candidate)
            known = torch.tanh(output)
        bias: Tensor = self.markov_w2(known)
        return bias, memory

    def embedded(self, previous: Tensor) -> Tensor:
        """What the confidence head may read [..., r] of the token before a slot."""
        known: Tensor = self.markov_w1(previous)
        return known


class ConfidenceHead(nn.Module):
    """Estimates the probability that the token of a slot is kept, given that those before it are."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.reads_markov = shape.confidence_reads_markov
        self.proj = nn.Linear(shape.hidden_size + shape.markov_rank * self.reads_markov, 1)

    def forward(self, states: Tensor, known: Tensor | None) -> Tensor:
        """Logits [...] of the slots with states [..., H].

        known: [..., r], `MarkovHead.embedded` of the token before each; read only if the head does.
        """
        read = states
        if self.reads_markov:
            assert known is not None, "the head reads the token before the slot"
            read = torch.cat([states, known], dim=-1)
        logits: Tensor = self.proj(read)[..., 0]
        return logits
