"""EAGLE by the book: one sequence, no cache, no mask of a tree, one path at a time. Slow and easy to check.

Written from the papers and from the description of the official code, on plain tensors and a state dict; it
shares no code with `methods` but the names of the tensors. Llama-shaped heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

Path = tuple[int, ...]


@dataclass
class Round:
    """One round: node paths in order of their numbers, accepted tokens, the next pending token."""

    paths: list[Path]
    accepted: list[int]
    bonus: int


@dataclass
class Reference:
    """Decodes with a head; options are those of `HeadShape`."""

    model: Any
    weights: dict[str, Tensor]
    eagle3: bool
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float = 1e-6
    rope_theta: float = 10000.0
    norm_output: bool = False
    norm_before_residual: bool = False
    rounds: list[Round] = field(default_factory=list)

    @torch.no_grad()
    def generate(
        self, prompt: list[int], num_rounds: int, total_token: int, depth: int, top_k: int
    ) -> list[int]:
        """Output ids of the prefill and `num_rounds` rounds, greedy."""
        logits, features = self.target(prompt)
        sequence = [*prompt, int(logits[-1].argmax())]
        for _ in range(num_rounds):
            _, features = self.target(sequence[:-1])
            tree = self.tree(features, sequence, total_token, depth, top_k)
            accepted: list[int] = []
            while True:
                best = int(self.target([*sequence, *accepted])[0][-1].argmax())
                if (*accepted, best) not in tree:
                    break
                accepted.append(best)
            self.rounds.append(Round(tree, accepted, best))
            sequence += [*accepted, best]
        return sequence[len(prompt) :]

    def target(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        """The target's logits [n, V] and features [n, F] of a whole sequence."""
        out = self.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        states = out.hidden_states
        if not self.eagle3:
            return out.logits[0], states[-1][0]
        num_layers = len(states) - 1
        # hidden_states[j] is what enters block j.
        taps = [min(2, num_layers - 1), num_layers // 2, max(num_layers - 3, 0)]
        return out.logits[0], torch.cat([states[tap][0] for tap in taps], dim=-1)

    def tree(
        self, features: Tensor, sequence: list[int], total_token: int, depth: int, top_k: int
    ) -> list[Path]:
        """Paths of the nodes that EAGLE-2 would draft."""
        candidates: list[tuple[float, Path]] = []
        beam: list[tuple[float, Path]] = [(0.0, ())]
        for _ in range(depth + 1):
            level: list[tuple[float, Path]] = []
            for score, path in beam:
                law = self.law(features, sequence, path)
                ids = sorted(range(len(law)), key=lambda i: -float(law[i]))[:top_k]
                level += [(score + float(law[i]), (*path, self.target_id(i))) for i in ids]
            candidates += level
            beam = sorted(level, key=lambda one: -one[0])[:top_k]
        ranked = sorted(range(len(candidates)), key=lambda i: (-candidates[i][0], i))[: total_token - 1]
        return [candidates[i][1] for i in sorted(ranked)]

    def law(self, features: Tensor, sequence: list[int], path: Path) -> Tensor:
        """Log-probabilities over the draft vocabulary after `sequence` and then `path`.

        Row i of the head pairs the feature of token i with token i + 1. After the last feature, the head's
        own outputs take the place of features.
        """
        w = self.weights
        states = list(features if not self.eagle3 else linear(features, w["fc.weight"], w.get("fc.bias")))
        tokens = [*sequence[1:], *path]
        for _ in range(len(path)):
            states.append(self.head(torch.stack(states), tokens[: len(states)])[-1])
        last = self.head(torch.stack(states), tokens)[-1]
        if not self.eagle3:
            return self.model.lm_head(last).log_softmax(-1)
        if not self.norm_output:
            last = self.norm(last, w["norm.weight"])
        logits = linear(last, w["lm_head.weight"]) if "lm_head.weight" in w else self.model.lm_head(last)
        return logits.log_softmax(-1)

    def target_id(self, draft_id: int) -> int:
        offset = self.weights.get("d2t")
        return draft_id + (int(offset[draft_id]) if offset is not None else 0)

    def head(self, states: Tensor, tokens: list[int]) -> Tensor:
        """The layer over a whole row of states [n, H], each with the token after it."""
        w = self.weights
        table = w.get("embed_tokens.weight")
        embed = self.model.get_input_embeddings()(torch.tensor(tokens)) if table is None else table[tokens]
        if self.eagle3:
            normed = self.norm(states, w["layer.hidden_norm.weight"])
            read = torch.cat([self.norm(embed, w["layer.input_layernorm.weight"]), normed], dim=-1)
            states = normed if self.norm_before_residual else states
        else:
            read = states = linear(torch.cat([embed, states], dim=-1), w["fc.weight"], w.get("fc.bias"))
        states = states + self.attention(read)
        inner = self.norm(states, w["layer.post_attention_layernorm.weight"])
        gate, up = (linear(inner, w[f"layer.mlp.{name}_proj.weight"]) for name in ("gate", "up"))
        states = states + linear(silu(gate) * up, w["layer.mlp.down_proj.weight"])
        return self.norm(states, w["norm.weight"]) if self.norm_output else states

    def attention(self, read: Tensor) -> Tensor:
        """Causal attention, head by head."""
        w, num_rows, size = self.weights, len(read), self.head_dim

        def heads(name: str, count: int) -> list[Tensor]:
            flat = linear(
                read, w[f"layer.self_attn.{name}_proj.weight"], w.get(f"layer.self_attn.{name}_proj.bias")
            )
            parts = list(flat.view(num_rows, count, size).unbind(1))
            weight = w.get(f"layer.self_attn.{name}_norm.weight")
            return [self.norm(part, weight) for part in parts] if weight is not None else parts

        queries = [self.rotate(part) for part in heads("q", self.num_heads)]
        keys = [self.rotate(part) for part in heads("k", self.num_kv_heads)]
        values = heads("v", self.num_kv_heads)
        outputs = []
        for number, query in enumerate(queries):
            group = number * self.num_kv_heads // self.num_heads
            scores = query @ keys[group].T / math.sqrt(size)
            scores = scores.masked_fill(torch.ones(num_rows, num_rows).triu(1).bool(), -math.inf)
            outputs.append(scores.softmax(-1) @ values[group])
        return linear(torch.cat(outputs, dim=-1), w["layer.self_attn.o_proj.weight"])

    def rotate(self, rows: Tensor) -> Tensor:
        """Rotary position embedding of rows [n, D], row i at position i."""
        half = self.head_dim // 2
        rates = self.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(len(rows), dtype=torch.float64)[:, None] * rates
        cos, sin = angles.cos().to(rows.dtype), angles.sin().to(rows.dtype)
        first, second = rows[:, :half], rows[:, half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        return rows * (rows.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * weight
