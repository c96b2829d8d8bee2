"""A batch of the loop: the running and the waiting sequences, their outputs, and the time each is charged.

Shapes: B sequences that run, n drafted nodes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from harness.decoding.acceptance import Accepted
from harness.decoding.charging import Span, charge
from harness.decoding.decision import Decision, read_first
from harness.decoding.faults import method_code
from harness.decoding.forced_tokens import Asked, ForcedTokens, next_tokens
from harness.decoding.sampling import DecodingParams, TokenSampler
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, Outcome
from harness.ledger.quantities import Quantities
from harness.target.model import Target

Stop = Literal["end", "cap", "context"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt of token ids and the key of its random stream (see `decoding.stream_key`)."""

    prompt: Sequence[int]
    key: int
    forced: ForcedTokens | None = None
    """Tokens that the output must hold at some place."""


@dataclass(frozen=True, kw_only=True)
class Generation(Quantities):
    """The output and the ledger of one request."""

    output_ids: list[int] = field(default_factory=list)
    """The answer, with the end token if there was one."""
    stop: Stop | None = None
    """Why it ended; None while it runs."""
    drafts: list[tuple[Draft, int]] = field(default_factory=list, repr=False)
    """Per round, the draft of the batch and this sequence's row in it, for the verdict and for display."""
    paths: list[list[int]] = field(default_factory=list, repr=False)
    """Per round, the drafted tokens that were kept, before trimming."""


def trim(tokens: Sequence[int], end_token_ids: Collection[int], limit: int) -> tuple[list[int], bool]:
    """The first `limit` tokens, cut after the first end token; whether an end token was met."""
    kept: list[int] = []
    for token in tokens[:limit]:
        kept.append(token)
        if token in end_token_ids:
            return kept, True
    return kept, False


def _closed_up(num_rows: int, gone: Collection[int]) -> list[int]:
    """The rows that stay. The last of them take the places of those that are gone, so that few move."""
    num_left = num_rows - len(gone)
    movers = iter([row for row in range(num_left, num_rows) if row not in gone])
    return [next(movers) if row in gone else row for row in range(num_left)]


class Batch:
    """The sequences of one call: the running ones, the waiting ones and their outputs."""

    def __init__(
        self,
        target: Target,
        requests: Sequence[Request],
        drafter: Drafter,
        params: DecodingParams,
        *,
        end_token_ids: Collection[int],
        max_context: int,
        most: int | None = None,
    ) -> None:
        """`most`: sequences that run at the same time; None is all."""
        self.target, self.drafter, self.params = target, drafter, params
        self.requests = requests
        self.generations = [Generation() for _ in requests]
        # Prompts of similar length are neighbours, because these are fed together. Per row of the batch, the
        # number of its request.
        numbers = range(len(requests))
        self.running = sorted(numbers[:most], key=lambda number: len(requests[number].prompt))
        self._waiting = deque(numbers[len(self.running) :])
        self.sampler = self._sampler(self.running)
        self.pending = torch.empty(0)
        self._last: list[int] = []
        self._end = frozenset[int]() if params.ignore_end_token else frozenset(end_token_ids)
        self._max_context = max_context
        self._rounds, self._entered = list[list[int]](), list[list[int]]()

    def prefill(self) -> None:
        """Feed the first prompts, draw the first token of each, show both to the drafter."""
        self.target.begin(len(self.running))
        with method_code():
            self.drafter.reset(len(self.running))
        self.pending, outcome = self._read_prompts(range(len(self.running)), together=True)
        self._last = list(outcome.pending)
        self._entered.append(list(self.running))
        more = self._any_left()
        if more:
            with method_code():
                self.drafter.observe(outcome)
        if self.refill(more):
            self._entered[0] += self._entered.pop()

    def refill(self, more: bool) -> bool:
        """Replace finished sequences by waiting ones; returns whether any has entered.

        more: whether any sequence is left to decode.
        """
        if not more:
            self.running = []
            return False
        taken: list[int] = []
        while finished := self._finished():
            surplus = finished[len(self._waiting) :]
            if surplus:
                self._keep(_closed_up(len(self.running), surplus))
            places = self._finished() if self.running else []
            if not places:
                break
            # A sequence may end with its first token, and its row is free again.
            taken += self._take_in(places)
        if taken:
            self._entered.append(taken)
        return bool(taken)

    def _take_in(self, places: list[int]) -> list[int]:
        """Begin waiting requests in these rows; returns their numbers."""
        numbers = [self._waiting.popleft() for _ in places]
        for b, number in zip(places, numbers, strict=True):
            self.running[b] = number
            self.sampler.replace(b, self.requests[number].key)
        # Which rows become free together depends on the method; prefilling one prompt at a time keeps its
        # rounding identical across arms.
        first, outcome = self._read_prompts(places, together=False)
        self.pending = self.pending.clone()
        self.pending[places] = first
        for b, token in zip(places, outcome.pending, strict=True):
            self._last[b] = token
        with method_code():
            self.drafter.observe(replace(outcome, rows=places))
        return numbers

    def _read_prompts(self, places: Sequence[int], together: bool) -> tuple[Tensor, Outcome]:
        """Feed the prompts of these rows; returns the first tokens of their outputs and the drafter's
        outcome."""
        numbers = [self.running[b] for b in places]
        prompts = [list(self.requests[number].prompt) for number in numbers]
        logits, taps = self.target.prefill(places, prompts, together)
        position = torch.zeros(len(numbers), 1, dtype=torch.int64, device=self.target.device)
        first = self._sampler(numbers).choose(logits[:, None], position)[:, 0]
        tokens = read_first(first, logits)
        for number, token in zip(numbers, tokens, strict=True):
            self._emit(number, [token])
        states = [pad_sequence(list(tapped), batch_first=True) for tapped in zip(*taps, strict=True)]
        return first, Outcome(committed=prompts, pending=tokens, taps=states[: len(self.drafter.taps)])

    def _sampler(self, numbers: Sequence[int]) -> TokenSampler:
        keys = [self.requests[number].key for number in numbers]
        return TokenSampler(self.params, keys, self.target.vocab_size, self.target.device)

    def _finished(self) -> list[int]:
        return [b for b, number in enumerate(self.running) if self.generations[number].stop is not None]

    def _any_left(self) -> bool:
        return bool(self._waiting) or len(self._finished()) < len(self.running)

    def _keep(self, rows: list[int]) -> None:
        """Continue with these rows only."""
        self.running = [self.running[b] for b in rows]
        if not rows:
            return
        self.pending = self.pending[rows]
        self._last = [self._last[b] for b in rows]
        self.target.keep(rows)
        self.sampler.keep(rows)
        with method_code():
            self.drafter.keep(rows)

    def room(self) -> list[int]:
        """Per running sequence, the drafted tokens that could still be emitted, one less for the bonus
        token."""
        return [
            max(self._left(row) - 1, 0) if token is None else 0
            for row, token in zip(self.running, next_tokens(self.asked()), strict=True)
        ]

    def asked(self) -> list[Asked]:
        """Per running sequence, the tokens that it forces and its output so far."""
        return [(self.requests[row].forced, self.generations[row].output_ids) for row in self.running]

    def positions(self) -> Tensor:
        """[B] output position of the token after the pending one."""
        lengths = [len(self.generations[row].output_ids) for row in self.running]
        return torch.tensor(lengths).to(self.target.device, non_blocking=True)

    def record(self, draft: Draft, decision: Decision) -> bool:
        """Record the round; returns whether any sequence is left to decode."""
        self._rounds.append(list(self.running))
        for b, (row, token) in enumerate(zip(self.running, next_tokens(self.asked()), strict=True)):
            generation = self.generations[row]
            emitted = self._emit(row, [*decision.path_tokens[b], decision.token[b]])
            generation.drafted.append(decision.size[b])
            generation.depth.append(decision.depth[b])
            generation.accepted.append(decision.length[b])
            generation.emitted.append(emitted)
            generation.riders.append(draft.num_riders)
            generation.forced.append(int(token is not None))
            generation.drafts.append((draft, b))
            generation.paths.append(decision.path_tokens[b])
        return self._any_left()

    def observe(
        self,
        draft: Draft,
        logits: Tensor,
        rider_logits: Tensor | None,
        accepted: Accepted,
        decision: Decision,
    ) -> None:
        """Show the round to the drafter. The round's last token becomes the pending one."""
        self.pending, last, self._last = accepted.token, self._last, decision.token
        outcome = Outcome(
            committed=[[old, *path] for old, path in zip(last, decision.path_tokens, strict=True)],
            pending=decision.token,
            taps=self.target.taken(accepted.path, decision.length)[: len(self.drafter.taps)],
            draft=draft,
            logits=logits,
            rider_logits=rider_logits,
        )
        with method_code():
            self.drafter.policy.observe(decision.size, decision.length)
            self.drafter.observe(outcome)

    def charge(self, spans: Sequence[Span], total_ns: int) -> None:
        """Divide the measured time among generations and rounds; see `charging.charge`."""
        self.generations = charge(self.generations, self._entered, self._rounds, spans, total_ns)

    def _emit(self, row: int, tokens: list[int]) -> int:
        generation = self.generations[row]
        kept, ended = trim(tokens, self._end, self._left(row))
        generation.output_ids.extend(kept)
        if ended:
            self._stop(row, "end")
        elif len(generation.output_ids) >= self.params.max_new_tokens:
            self._stop(row, "cap")
        elif self._context_left(row) <= 0:
            self._stop(row, "context")
        return len(kept)

    def _stop(self, row: int, reason: Stop) -> None:
        self.generations[row] = replace(self.generations[row], stop=reason)

    def _context_left(self, row: int) -> int:
        return self._max_context - len(self.requests[row].prompt) - len(self.generations[row].output_ids)

    def _left(self, row: int) -> int:
        cap_left = self.params.max_new_tokens - len(self.generations[row].output_ids)
        return min(cap_left, self._context_left(row))
