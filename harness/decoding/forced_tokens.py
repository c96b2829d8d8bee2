"""Forced tokens: an output that must continue with given tokens at a given place, one of them per round.

Scenarios with a thinking budget use them: after B tokens of thought the target is made to write the end of
its thought. The place depends on the output alone, never on the method, so that every method emits what
vanilla emits.

Shapes: B sequences that run, n drafted nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from harness.decoding.acceptance import Accepted
from harness.decoding.decision import Decision
from harness.drafting.draft import Draft


@dataclass(frozen=True, kw_only=True)
class ForcedTokens:
    """Tokens that stand in an output from position `after` on, whatever the target would draw there."""

    ids: tuple[int, ...]
    after: int
    """Tokens that are drawn before the first forced one, at least 1."""
    unless: tuple[int, ...] = ()
    """Nothing is forced where these tokens, one after the other, stand among those drawn before. Empty: the
    tokens are forced in any case."""

    def __post_init__(self) -> None:
        assert self.ids, "needs tokens"
        assert self.after >= 1, "the first token of an output cannot be forced"

    def at(self, output: Sequence[int]) -> int | None:
        """The token that follows `output`, the tokens emitted so far; None where it is drawn."""
        place = len(output) - self.after
        if not 0 <= place < len(self.ids) or self._is_spared(output[: self.after]):
            return None
        return self.ids[place]

    def places(self, output: Sequence[int]) -> set[int]:
        """The positions of a whole output whose tokens were forced."""
        begun = range(self.after, min(self.after + len(self.ids), len(output)))
        return {place for place in begun if self.at(output[:place]) is not None}

    def cut(self, output: Sequence[int], path: Sequence[int]) -> int | None:
        """How many of the accepted tokens `path` may stay, so that the round ends before the forced ones.

        The token behind them is then the next one of `path`. None: the round ends before, or nothing is
        forced.
        """
        left = self.after - len(output)
        if left < 1 or len(path) < left or self._is_spared([*output, *path[:left]]):
            return None
        return left - 1

    def _is_spared(self, before: Sequence[int]) -> bool:
        run = list(self.unless)
        if not run:
            return False
        starts = (place for place, token in enumerate(before) if token == run[0])
        return any(list(before[place : place + len(run)]) == run for place in starts)


Asked = tuple[ForcedTokens | None, Sequence[int]]
"""What a sequence forces, and its output so far."""


def next_tokens(asked: Sequence[Asked]) -> list[int | None]:
    """The token that must come next in each sequence; None where it is drawn."""
    return [None if forced is None else forced.at(output) for forced, output in asked]


def without_drafts(draft: Draft, asked: Sequence[Asked]) -> Draft:
    """The draft without the nodes of sequences whose next token is forced."""
    tokens = next_tokens(asked)
    if not draft.width or all(token is None for token in tokens):
        return draft
    drawn = torch.tensor([token is None for token in tokens], device=draft.tokens.device)
    return draft.restricted(drawn[:, None].expand_as(draft.tokens))


def overrule(accepted: Accepted, decision: Decision, asked: Sequence[Asked]) -> tuple[Accepted, Decision]:
    """The acceptor's decision on the device and on the host, after forced tokens have overruled it."""
    lengths, tokens = list(decision.length), list(decision.token)
    for b, ((forced, output), path) in enumerate(zip(asked, decision.path_tokens, strict=True)):
        if forced is None:
            continue
        if (token := forced.at(output)) is not None:
            lengths[b], tokens[b] = 0, token
        elif (kept := forced.cut(output, path)) is not None:
            lengths[b], tokens[b] = kept, path[kept]
    if (lengths, tokens) == (decision.length, decision.token):
        return accepted, decision
    paths = [path[:length] for path, length in zip(decision.path_tokens, lengths, strict=True)]
    decision = replace(decision, length=lengths, token=tokens, path_tokens=paths)
    return _overruled(accepted, lengths, tokens), decision


def _overruled(accepted: Accepted, lengths: Sequence[int], tokens: Sequence[int]) -> Accepted:
    """The same decision with these numbers of accepted nodes [B] and these tokens [B] behind them."""
    device = accepted.token.device
    return accepted._replace(
        length=torch.tensor(lengths, dtype=accepted.length.dtype).to(device),
        token=torch.tensor(tokens, dtype=accepted.token.dtype).to(device),
    )
