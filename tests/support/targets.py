"""Tiny random targets and drafters that only tests need."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from harness.config import configurable
from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import stream_key
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, HiddenTap, Outcome
from harness.target.model import Target

VOCAB = 61
END = 3


@cache
def tiny_model(family: str) -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=24))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # Sharper distributions than initialisation gives, so that greedy outputs differ.
                parameter.mul_(3)
    return model.eval()


def engine(family: str = "llama", **options: Any) -> DecodingLoop:
    return DecodingLoop(Target(tiny_model(family)), {END}, 512, **options)


def requests(seed: int = 0) -> list[Request]:
    """Three prompts of different lengths whose tokens repeat."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(4, 12, (length,), generator=generator).tolist() for length in (6, 11, 19)]
    return [Request(prompt=p, key=stream_key(seed, str(i), 0, 0)) for i, p in enumerate(prompts)]


def ending_apart(outputs: Sequence[Sequence[int]]) -> int:
    """A token that would end these outputs at different places."""

    def places(token: int) -> set[int]:
        return {list(output).index(token) if token in output else -1 for output in outputs}

    return next(token for token in range(VOCAB) if len(places(token)) == len(outputs))


def oracle(asked: Sequence[Request], outputs: Sequence[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """What follows the first token of each request's output, by prompt."""
    return {tuple(one.prompt): list(output[1:]) for one, output in zip(asked, outputs, strict=True)}


@configurable
class RandomTrees(Drafter):
    """Trees of random shape; half of their tokens come from an `oracle`, so that paths are accepted."""

    oracle: Any = None
    width: int = 7

    @property
    def taps(self) -> tuple[HiddenTap, ...]:
        return (HiddenTap(0, "output"), HiddenTap(1, "input"))

    def reset(self, num_rows: int) -> None:
        self._generator = torch.Generator().manual_seed(7)
        self.prompts: list[tuple[int, ...]] = [()] * num_rows
        self._answers: list[list[int]] = [[] for _ in range(num_rows)]

    def propose(self, room: Sequence[int]) -> Draft:
        tokens = torch.zeros(len(self._answers), self.width, dtype=torch.int64)
        parents = torch.full_like(tokens, -1)
        size = torch.zeros(len(self._answers), dtype=torch.int64)
        for b, answer in enumerate(self._answers):
            depth: dict[int, int] = {-1: 0}
            taken: set[tuple[int, int]] = set()
            count = int(torch.randint(0, self.width + 1, (1,), generator=self._generator))
            for node in range(count):
                parent = int(torch.randint(-1, node, (1,), generator=self._generator)) if node else -1
                right = int(torch.randint(0, 2, (1,), generator=self._generator)) and depth[parent] < len(
                    answer
                )
                token = int(torch.randint(0, VOCAB, (1,), generator=self._generator))
                token = answer[depth[parent]] if right else token
                while (parent, token) in taken:
                    token = (token + 1) % VOCAB
                taken.add((parent, token))
                depth[node] = depth[parent] + 1
                tokens[b, node], parents[b, node] = token, parent
            size[b] = count
        device = self._target.device
        draft = Draft(tokens=tokens.to(device), parents=parents.to(device), size=size.to(device))
        draft.check(VOCAB)
        return draft

    def observe(self, outcome: Outcome) -> None:
        for first, second in zip(*outcome.taps, strict=True):
            # The output of a block is the input of the next one.
            assert torch.equal(first, second)
        self.follow(outcome)

    def follow(self, outcome: Outcome) -> None:
        """Which prompt is in which row, and what is still to come of its answer."""
        for b, committed in enumerate(outcome.committed):
            assert outcome.taps[0].shape[:2] == (len(outcome.committed), max(map(len, outcome.committed)))
            if outcome.draft is None:
                row = b if outcome.rows is None else outcome.rows[b]
                self.prompts[row] = tuple(committed)
                self._answers[row] = self.oracle[self.prompts[row]] if self.oracle else []
            else:
                self._answers[b] = self._answers[b][len(committed) :]

    def keep(self, rows: Sequence[int]) -> None:
        self.prompts = [self.prompts[b] for b in rows]
        self._answers = [self._answers[b] for b in rows]
