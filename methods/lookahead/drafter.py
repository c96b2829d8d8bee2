"""Lookahead: a Jacobi window rides along in every forward, and the n-grams that it leaves are drafted.

Fu et al. 2024, "Break the Sequential Dependency of LLM Inference Using Lookahead Decoding" (arXiv
2402.02057). The window's tokens are riders of the draft: they share the forward, no node sees them, and the
target's likeliest tokens after the newest level become the next one. The n-grams that begin with the
pending token are verified as branches of one tree.

Departures from the authors' code: the last token of a guess may be accepted too, where theirs stops one
earlier; equal beginnings of guesses are one path; the window begins with the first token of the answer
instead of the last one of the prompt; and sampling is exact by the harness's acceptors, where theirs is
greedy. The window itself always follows the likeliest tokens.

Shapes: B sequences, n drafted nodes, r riders, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain

import torch
from pydantic import Field
from torch import Tensor

from harness.config import configurable
from harness.drafting.draft import Draft, Riders
from harness.drafting.drafter import Outcome
from harness.drafting.sequence_drafter import SequenceTreeDrafter
from methods.lookahead.jacobi_window import JacobiWindow
from methods.shared.likeliest import likeliest


@configurable
class Lookahead(SequenceTreeDrafter):
    """Drafts a tree of pooled n-grams and adds the tokens of a Jacobi window to every forward."""

    level: int = Field(default=5, ge=3)
    """N, the length of an n-gram, its first token included."""
    window: int = Field(default=7, ge=2)
    """W, the columns of the window."""
    num_guesses: int = Field(default=7, ge=1)
    """G, the n-grams that are kept for a token and verified together."""

    def start_one(self) -> list[JacobiWindow]:
        """No window before the prompt is known; a list, so that the prompt can put one in."""
        return []

    def extend_one(self, state: list[JacobiWindow], tokens: Sequence[int]) -> None:
        """Begin the window with tokens of the text that is known then."""
        if not state:
            state.append(JacobiWindow(tokens, self.level, self.window, self.num_guesses))

    def propose_tree(
        self, context: Sequence[int], state: list[JacobiWindow], room: int
    ) -> tuple[list[int], list[int]]:
        """The guesses for the pending token, equal beginnings merged."""
        tokens: list[int] = []
        parents: list[int] = []
        places: dict[tuple[int, ...], int] = {(): -1}
        for gram in state[0].guesses(context[-1]):
            for end in range(1, min(len(gram), room) + 1):
                if gram[:end] not in places:
                    places[gram[:end]] = len(tokens)
                    tokens.append(gram[end - 1])
                    parents.append(places[gram[: end - 1]])
        return tokens, parents

    def propose(self, room: Sequence[int]) -> Draft:
        """The trees of all sequences, with their windows as riders."""
        draft = super().propose(room)
        return replace(draft, riders=self._riders(draft.width))

    def _riders(self, width: int) -> Riders:
        """The windows of all sequences in one rectangle, behind `width` nodes that no rider sees."""
        windows = [state[0] for state in self._states]
        most = max(sum(map(len, window.levels)) for window in windows)
        layouts = [_layout(tuple(map(len, window.levels)), most) for window in windows]
        tokens = [list(chain.from_iterable(window.levels)) for window in windows]
        device = self._target.device
        seen = torch.stack([seen for _, seen in layouts]).to(device)
        nodes = seen.new_zeros(*seen.shape[:2], width)
        return Riders(
            tokens=torch.tensor([own + [0] * (most - len(own)) for own in tokens], device=device),
            offsets=torch.stack([offsets for offsets, _ in layouts]).to(device),
            visible=torch.cat([seen[..., :1], nodes, seen[..., 1:]], dim=-1),
        )

    def observe(self, outcome: Outcome) -> None:
        """Give the windows their next level, then extend the texts."""
        if outcome.rider_logits is not None:
            width = outcome.rider_logits.shape[1]
            places: list[int] = []
            for row, state in enumerate(self._states):
                begin = row * width + sum(map(len, state[0].levels[:-1]))
                places += range(begin, begin + len(state[0].levels[-1]))
            best = iter(likeliest(outcome.rider_logits, 1, places)[:, 0].tolist())
            for state, context in zip(self._states, self._contexts, strict=True):
                state[0].advance(context[-1], [next(best) for _ in state[0].levels[-1]])
        super().observe(outcome)


@lru_cache(maxsize=64)
def _layout(sizes: tuple[int, ...], width: int) -> tuple[Tensor, Tensor]:
    """Offsets [r] and what is seen [r, 1+r] of a window with levels of these sizes, filled up to r riders.

    With the pending token as the head of level 0, element i of level 0 sees the elements before it and
    itself. Element i of a later level sees elements 0 to i of level 0, element i of the levels between, and
    itself.
    """
    # Level 0 lacks its head, which is the pending token.
    places = [(number, index + (number == 0)) for number, size in enumerate(sizes) for index in range(size)]
    spare = width - len(places)
    seen = [[True, *(_sees(one, other) for other in places), *[False] * spare] for one in places] + [
        [True, *(other == place for other in range(width))] for place in range(len(places), width)
    ]
    return torch.tensor([sum(place) for place in places] + [0] * spare), torch.tensor(seen)


def _sees(one: tuple[int, int], other: tuple[int, int]) -> bool:
    (level, index), (other_level, other_index) = one, other
    if other_level == 0:
        return other_index <= index
    return other_level <= level and other_index == index
