"""GuidedTarget: a target whose sequences advance in pairs, with and without their text.

Whoever drafts, accepts or samples sees one sequence, with the logits of both rows combined. The cache holds B
sequences and then their B companions, which are fed the same tokens.

Shapes: B sequences, n drafted nodes, r riders, R rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from harness.drafting.draft import Draft
from harness.drafting.drafter import Tap
from harness.target.image.guidance import Guidance
from harness.target.model import Target


class GuidedTarget(Target):
    """A causal LM of image tokens under classifier-free guidance."""

    def __init__(self, *args: Any, guidance: Guidance, **options: Any) -> None:
        """The arguments of `Target`, and how sequences are guided."""
        super().__init__(*args, **options)
        self.guidance = guidance
        self._starts: list[int] = []
        """Tokens of each sequence's prompt."""

    @property
    def _num_rows(self) -> int:
        return len(self._starts)

    @override
    def begin(self, num_rows: int) -> None:
        super().begin(2 * num_rows)
        self._starts = [0] * num_rows

    @override
    def prefill(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], together: bool = True
    ) -> tuple[Tensor, list[list[Tensor]]]:
        companions = [self.guidance.companion(prompt) for prompt in prompts]
        for row, prompt in zip(rows, prompts, strict=True):
            self._starts[row] = len(prompt)
        own, states = super().prefill(rows, prompts, together)
        free, _ = super().prefill([row + self._num_rows for row in rows], companions, together)
        return self.guidance.guided(
            own, free, torch.zeros(len(rows), dtype=torch.int64, device=own.device)
        ), states

    @torch.no_grad()
    @override
    def verify(self, pending: Tensor, draft: Draft) -> Tensor:
        # The pending token is the first of the image that the cache does not hold.
        known = zip(self.cache.lengths[: self._num_rows], self._starts, strict=True)
        first = torch.tensor([length - start + 1 for length, start in known]).to(pending.device)
        own, free = super().verify(pending.repeat(2), draft.repeated(2)).chunk(2)
        return self.guidance.guided(own, free, first[:, None] + pad(draft.forward_offsets, (1, 0)))

    @override
    def states(self) -> list[Tensor]:
        return [state[: self._num_rows] for state in super().states()]

    @override
    def commit(self, path: Tensor | None, length: list[int]) -> None:
        super().commit(None if path is None else path.repeat(2, 1), [*length, *length])

    @override
    def keep(self, rows: list[int]) -> None:
        super().keep([*rows, *(row + self._num_rows for row in rows)])
        self._starts = [self._starts[row] for row in rows]

    @torch.no_grad()
    @override
    def trace(self, ids: Tensor, taps: Sequence[Tap]) -> tuple[Tensor, list[Tensor]]:
        logits, states = super().trace(ids, taps)
        guided = []
        for tokens, own in zip(ids.tolist(), logits, strict=True):
            place = self.guidance.place(tokens)
            if place is None:
                guided.append(own)
                continue
            companion = torch.tensor([[*self.guidance.negative, *tokens[place:]]])
            free = super().trace(companion, ())[0][0, len(self.guidance.negative) :]
            guided.append(torch.cat([own[:place], self._painted(own[place:], free, tokens, place)]))
        return torch.stack(guided), states

    @override
    def replay(self) -> Callable[[Sequence[int]], Tensor]:
        own, free = super().replay(), super().replay()
        seen: list[int] = []

        def feed(tokens: Sequence[int]) -> Tensor:
            logits, before = own(tokens), len(seen)
            seen.extend(tokens)
            place = self.guidance.place(seen)
            if place is None or not tokens:
                return logits
            opens = place >= before
            fed = [*self.guidance.negative, *seen[place:]] if opens else tokens
            begin = max(place, before)
            companion = free(fed)[-(len(seen) - begin) :]
            painted = self._painted(logits[begin - before :], companion, seen, begin)
            return torch.cat([logits[: begin - before], painted])

        return feed

    def _painted(self, own: Tensor, free: Tensor, tokens: Sequence[int], begin: int) -> Tensor:
        """Combined logits [R, V] after the tokens from the `begin`-th on; before the raster as they are."""
        start = (tokens.index(self.guidance.begins) if self.guidance.begins in tokens else len(tokens)) + 1
        place = torch.arange(begin, begin + len(own), device=own.device) + 1 - start
        guided = self.guidance.guided(own, free, place)
        return torch.where((place < 0)[:, None], own, guided)
