"""The loop: propose, verify, accept, commit, observe; a record of every round.

Shapes: B sequences still running, n drafted nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from harness.accept import Accepted, Acceptor
from harness.decoding import Chooser, DecodingParams
from harness.draft import Draft
from harness.drafter import Drafter, Outcome
from harness.measure import Stopwatch
from harness.target import Target

Stop = Literal["end", "cap", "context"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt of token ids and the key of its random stream (see `decoding.stream_key`)."""

    prompt: Sequence[int]
    key: int


@dataclass(kw_only=True)
class Generation:
    """What a loop made of one request; the fields are those of `records.GenerationRecord`.

    drafts: per round, the batch's draft and this sequence's row in it, kept for the verdict only.
    """

    output_ids: list[int] = field(default_factory=list)
    stop: Stop | None = None
    drafted: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    emitted: list[int] = field(default_factory=list)
    draft_ns: list[int] = field(default_factory=list)
    verify_ns: list[int] = field(default_factory=list)
    accept_ns: list[int] = field(default_factory=list)
    commit_ns: list[int] = field(default_factory=list)
    prefill_ns: int = 0
    total_ns: int = 0
    drafts: list[tuple[Draft, int]] = field(default_factory=list, repr=False)


class Engine(Protocol):
    """Whoever can decode a batch of requests: our loop, or a server."""

    def generate(
        self, requests: Sequence[Request], drafter: Drafter, params: DecodingParams, acceptor: Acceptor
    ) -> list[Generation]:
        """One generation a request, in order."""


class LocalEngine:
    """Decodes with a model of this process."""

    def __init__(
        self,
        target: Target,
        end_token_ids: Collection[int],
        max_context: int,
        timed: bool = True,
        widths: Sequence[int] = (),
    ) -> None:
        """`max_context`: tokens of prompt and output together. Untimed: every `_ns` is 0.

        widths: for a draft of n nodes, the width to pad it to (see `profiling.cheapest_widths`).
        """
        self.target = target
        self.end_token_ids = frozenset(end_token_ids)
        self.max_context = max_context
        self.timed = timed
        self._widths = widths

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], drafter: Drafter, params: DecodingParams, acceptor: Acceptor
    ) -> list[Generation]:
        """Decode a batch of B requests together; `drafter` has met the target (`Drafter.bind`).

        Each generation is charged an equal share of the batch's time, so that the sum of tokens over the
        sum of seconds is the batch's throughput; of a round, the share of the sequences still running.
        """
        self.target.watch(drafter.taps)
        batch = _Batch(self, requests, drafter, params, acceptor)
        watch = Stopwatch(self.target.device, self.timed)
        watch.start()
        batch.prefill()
        watch.lap("prefill")
        while batch.running:
            draft = drafter.propose(batch.room())
            watch.lap("draft")
            if draft.width < len(self._widths):
                draft = draft.padded(self._widths[draft.width])
            logits = self.target.verify(batch.pending, draft)
            watch.lap("verify")
            accepted = acceptor.accept(logits, draft, batch.chooser, batch.positions())
            decision = read(accepted, draft)
            watch.lap("accept")
            self.target.commit(None if draft.is_chain else accepted.path, decision.length)
            watch.lap("commit")
            more = batch.record(draft, decision)
            watch.lap("other")
            if more:
                drafter.observe(batch.outcome(draft, logits, accepted, decision))
                batch.drop_finished()
            else:
                batch.running = []
            watch.lap("observe")
        total = watch.stop()
        batch.charge(watch.spans(), total)
        return batch.generations


@dataclass(frozen=True)
class Decision:
    """An `Accepted` on the host, with the ids of the path. One entry a sequence."""

    length: list[int]
    token: list[int]
    path_tokens: list[list[int]]
    size: list[int]
    depth: list[int]


def read(accepted: Accepted, draft: Draft) -> Decision:
    """The round's one look of the host at the device."""
    columns = [accepted.length[:, None], accepted.token[:, None], draft.size[:, None]]
    if draft.width:
        # A chain's deepest level is its size.
        deepest = draft.size if draft.is_chain else (draft.depths * draft.real).amax(-1)
        columns += [deepest[:, None], draft.tokens.gather(1, accepted.path)]
    else:
        columns.append(draft.size[:, None])
    rows = torch.cat(columns, dim=1).tolist()
    return Decision(
        length=[row[0] for row in rows],
        token=[row[1] for row in rows],
        size=[row[2] for row in rows],
        depth=[row[3] for row in rows],
        path_tokens=[row[4 : 4 + row[0]] for row in rows],
    )


def trim(tokens: Sequence[int], end_token_ids: Collection[int], limit: int) -> tuple[list[int], bool]:
    """The first `limit` tokens, cut after the first end token; whether an end token was met."""
    kept: list[int] = []
    for token in tokens[:limit]:
        kept.append(token)
        if token in end_token_ids:
            return kept, True
    return kept, False


class _Batch:
    """The sequences of one call: what is running, what came out."""

    def __init__(
        self,
        engine: LocalEngine,
        requests: Sequence[Request],
        drafter: Drafter,
        params: DecodingParams,
        acceptor: Acceptor,
    ) -> None:
        self.target, self.drafter, self.params = engine.target, drafter, params
        self.requests = requests
        self.generations = [Generation() for _ in requests]
        self.running = list(range(len(requests)))
        self.chooser = Chooser(
            params, [request.key for request in requests], self.target.vocab_size, self.target.device
        )
        self.pending = torch.empty(0)
        self._last: list[int] = []
        self._end = frozenset[int]() if params.ignore_end_token else engine.end_token_ids
        self._max_context = engine.max_context
        self._rounds: list[list[int]] = []

    def prefill(self) -> None:
        """Feed every prompt, draw the first token of each, show both to the drafter."""
        self.target.begin(len(self.requests))
        self.drafter.reset(len(self.requests))
        logits, taps = [], []
        for row, request in enumerate(self.requests):
            last, states = self.target.prefill(row, request.prompt)
            logits.append(last)
            taps.append(states)
        device = self.target.device
        first = torch.zeros(len(logits), 1, dtype=torch.int64, device=device)
        self.pending = self.chooser.choose(torch.stack(logits)[:, None], first)[:, 0]
        tokens = self._last = self.pending.tolist()
        for row, token in enumerate(tokens):
            self._emit(row, [token])
        if any(self.generations[row].stop is None for row in self.running):
            self.drafter.observe(
                Outcome(
                    committed=[list(request.prompt) for request in self.requests],
                    pending=tokens,
                    taps=[pad_sequence(list(states), batch_first=True) for states in zip(*taps, strict=True)],
                )
            )
            self.drop_finished()
        else:
            self.running = []

    def room(self) -> list[int]:
        """Per running sequence, drafted tokens that could still be emitted; the bonus takes a place too."""
        return [max(self._left(row) - 1, 0) for row in self.running]

    def positions(self) -> Tensor:
        """[B] output position of the token after the pending one."""
        lengths = [len(self.generations[row].output_ids) for row in self.running]
        return torch.tensor(lengths).to(self.target.device, non_blocking=True)

    def record(self, draft: Draft, decision: Decision) -> bool:
        """Write the round down; whether any sequence goes on."""
        self._rounds.append(list(self.running))
        for b, row in enumerate(self.running):
            generation = self.generations[row]
            emitted = self._emit(row, [*decision.path_tokens[b], decision.token[b]])
            generation.drafted.append(decision.size[b])
            generation.depth.append(decision.depth[b])
            generation.accepted.append(decision.length[b])
            generation.emitted.append(emitted)
            generation.drafts.append((draft, b))
        return any(self.generations[row].stop is None for row in self.running)

    def outcome(self, draft: Draft, logits: Tensor, accepted: Accepted, decision: Decision) -> Outcome:
        """What the drafter sees of the round; moves the pending token on."""
        last, self._last = self._last, decision.token
        self.pending = accepted.token
        return Outcome(
            committed=[[old, *path] for old, path in zip(last, decision.path_tokens, strict=True)],
            pending=decision.token,
            taps=self.target.taken(accepted.path, decision.length),
            draft=draft,
            logits=logits,
        )

    def drop_finished(self) -> None:
        """Go on without the sequences that have stopped."""
        rows = [b for b, row in enumerate(self.running) if self.generations[row].stop is None]
        if len(rows) < len(self.running):
            self.running = [self.running[b] for b in rows]
            self.pending = self.pending[rows]
            self._last = [self._last[b] for b in rows]
            self.target.keep(rows)
            self.chooser.keep(rows)
            self.drafter.keep(rows)

    def charge(self, spans: list[tuple[str, int]], total_ns: int) -> None:
        """Share the measured time out among generations and rounds."""
        for generation in self.generations:
            generation.total_ns = total_ns // len(self.generations)
            for stage in ("draft", "verify", "accept", "commit"):
                getattr(generation, f"{stage}_ns").extend([0] * len(generation.emitted))
        if not spans:
            return
        seen = [0] * len(self.generations)
        current = -1
        for name, span_ns in spans:
            if name == "prefill":
                for generation in self.generations:
                    generation.prefill_ns = span_ns // len(self.generations)
                continue
            current += name == "draft"
            rows = self._rounds[current]
            for row in rows:
                generation, share = self.generations[row], span_ns // len(rows)
                if name in ("draft", "observe"):
                    # Seeing the outcome is the method's work as well.
                    generation.draft_ns[seen[row]] += share
                elif name != "other":
                    getattr(generation, f"{name}_ns")[seen[row]] += share
                seen[row] += name == "observe"

    def _emit(self, row: int, tokens: list[int]) -> int:
        generation = self.generations[row]
        cap_left = self.params.max_new_tokens - len(generation.output_ids)
        kept, ended = trim(tokens, self._end, min(cap_left, self._context_left(row)))
        generation.output_ids.extend(kept)
        if ended:
            generation.stop = "end"
        elif len(generation.output_ids) >= self.params.max_new_tokens:
            generation.stop = "cap"
        elif self._context_left(row) <= 0:
            generation.stop = "context"
        return len(kept)

    def _context_left(self, row: int) -> int:
        used = len(self.requests[row].prompt) + len(self.generations[row].output_ids)
        return self._max_context - used

    def _left(self, row: int) -> int:
        cap_left = self.params.max_new_tokens - len(self.generations[row].output_ids)
        return min(cap_left, self._context_left(row))
