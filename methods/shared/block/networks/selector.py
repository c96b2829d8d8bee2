"""DFlash2's candidate selector: a bilinear score between a slot's best tokens and the token before it.

Shapes: B sequences, H hidden size, r rank, c candidates.
"""

from __future__ import annotations

from torch import Tensor, nn

from methods.shared.block.shape import BlockShape


class CandidateSelector(nn.Module):
    """Scores the likeliest tokens of a slot anew when the token before it is known."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        rank = shape.selector_rank
        self.num_candidates = shape.selector_top_k
        self.predecessor_codebook = nn.Embedding(shape.vocab_size, rank)
        self.successor_codebook = nn.Embedding(shape.vocab_size, rank)
        self.hidden_projection = nn.Linear(shape.hidden_size, rank, bias=False)

    def forward(self, logits: Tensor, candidates: Tensor, states: Tensor, previous: Tensor) -> Tensor:
        """Scores [B, c] of the candidates of a slot, from which one is chosen or drawn.

        logits: [B, c], their own. candidates: [B, c] int64, ids of the target. states: [B, H], the slot's.
        previous: [B] int64, the token before the slot.
        """
        known = self.predecessor_codebook(previous) * self.hidden_projection(states)
        scores: Tensor = logits + (self.successor_codebook(candidates) * known[:, None]).sum(-1)
        return scores
