"""Lossless or not: compares a generation with vanilla's and explains the first difference.

The explanation is computed on an independent path (transformers' cache and causal mask, a tree's path laid
out as a chain of the same width), so that a fault in our mask or cache cannot excuse itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from harness.benchmark.scenarios.turn_runner import CallKey, TurnResult
from harness.decoding.acceptance import Acceptor
from harness.decoding.batch import Generation, Request
from harness.decoding.sampling import DecodingParams, TokenSampler
from harness.engines.engine import Engine
from harness.store.records import BASELINE, NullReplay, Verdict
from harness.target.model import Target


class Referee:
    """Decides which results of a run can be compared with vanilla's, and compares these."""

    def __init__(self, engine: Engine, params: DecodingParams, acceptor: Acceptor) -> None:
        self._engine, self._params, self._acceptor = engine, params, acceptor

    @cached_property
    def _judge(self) -> Judge | None:
        """Made when it is needed, because an engine may have to load weights for it."""
        target = self._engine.reference
        return None if target is None else Judge(target, self._params)

    def verdict(self, one: TurnResult, vanilla: TurnResult | None) -> Verdict:
        """The verdict on a result; `vanilla`: vanilla's first result of the same call.

        None where it made no such call: after an earlier difference, its context had no room for it.
        """
        is_vanilla = one.player.name == BASELINE
        # Vanilla drafts nothing, so no acceptor can change it.
        if not self._acceptor.lossless and one.player.kind != "rung" and not is_vanilla:
            return Verdict("forced" if self._acceptor.forced else "lossy")
        # Whatever the acceptor, vanilla draws again what it drew: its repeats have the same random stream.
        coupled = self._engine.coupled and (self._acceptor.coupled or is_vanilla)
        if vanilla is None:
            return Verdict("unpaired")
        same_prompt = list(one.request.prompt) == list(vanilla.request.prompt)
        if not same_prompt or not (coupled or self._params.greedy):
            return Verdict("unpaired")
        if one.generation.output_ids == vanilla.generation.output_ids:
            return Verdict("identical")
        if self._judge is None:
            return _without_weights(vanilla.generation, one.generation)
        verdict = self._judge.compare(one.request, vanilla.generation, one.generation, one.player.width)
        if verdict.kind == "broken" and not (self._engine.in_process and one.player.in_process):
            # Other kernels round in their own way, which these weights cannot tell from a fault.
            return verdict._replace(kind="unexplained")
        return verdict

    def nulls(
        self,
        results: Sequence[TurnResult],
        reference: Mapping[CallKey, TurnResult],
        conversations: Collection[str],
    ) -> Iterator[NullReplay]:
        """Replay vanilla's tokens at the widest verify shape of `results`, where there is a target to do it.

        Of an engine outside this process, vanilla's own repeats are the null: they meet other neighbours in
        its batches.
        reference: vanilla's first result of each call. conversations: ids of those that are replayed.
        """
        if not self._engine.in_process:
            yield from _nulls_of_repeats(results, reference)
            return
        widest = max((1 + draft.width for one in results for draft, _ in one.generation.drafts), default=1)
        if widest == 1 or self._judge is None:
            return
        for one in reference.values():
            if (name := one.call.conversation.id) in conversations:
                yield self._judge.null(name, one.request, one.generation.output_ids, widest)


def _nulls_of_repeats(
    results: Sequence[TurnResult], reference: Mapping[CallKey, TurnResult]
) -> Iterator[NullReplay]:
    """Compare each later repeat of vanilla with its first one, up to the first difference."""
    for one in results:
        first = reference.get(one.key)
        if first is None or one.player.name != BASELINE or one.by.repeat == 0:
            continue
        ours, theirs = first.generation.output_ids, one.generation.output_ids
        if list(one.request.prompt) == list(first.request.prompt):
            place = _first_difference(ours, theirs)
            yield NullReplay(one.call.conversation.id, min(place + 1, len(ours)), int(ours != theirs))


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Index of the first differing token; the length of the shorter output where one begins the other."""
    common = min(len(ours), len(theirs))
    return next((i for i in range(common) if ours[i] != theirs[i]), common)


def _without_weights(vanilla: Generation, other: Generation) -> Verdict:
    """The verdict where nobody can compute logits again: a difference of tokens stays unexplained."""
    ours, theirs = vanilla.output_ids, other.output_ids
    if ours == theirs:
        return Verdict("identical")
    place = _first_difference(ours, theirs)
    return Verdict("stop-rule" if place == min(len(ours), len(theirs)) else "unexplained", place)


class Judge:
    """Explains first differences on a target of this process."""

    def __init__(self, target: Target, params: DecodingParams) -> None:
        self._target, self._params = target, params

    def compare(self, request: Request, vanilla: Generation, other: Generation, width: int = 1) -> Verdict:
        """The verdict on `other`, which got the same request as `vanilla`.

        width: tokens of a target forward, for a loop that does not tell its rounds.
        A first difference is a `tie` if each side's token is what its own forward shape gives, or if the two
        tokens are closer in the one-token shape than rounding can move them apart. The second condition
        departs from the written protocol: the independent path does not round as the loop did (another
        kernel, a prefix that was filled in at once), so that it reproduces only one in ten of the ties of
        correct loops in bfloat16.
        """
        ours, theirs = vanilla.output_ids, other.output_ids
        if ours == theirs:
            return Verdict("identical")
        place = _first_difference(ours, theirs)
        if place == min(len(ours), len(theirs)):
            return Verdict("stop-rule", place)
        self._target.use_kernel("sdpa")
        try:
            single = self._logits(*self._one_token(request, ours, place))
            wide = self._logits(*self._wide(request, other, place, width))
        finally:
            self._target.use_kernel()
        scores, others = self._scores(request, place, single), self._scores(request, place, wide)
        pair = [ours[place], theirs[place]]
        gap = abs(float(scores[pair[0]] - scores[pair[1]]))
        explained = [int(scores.argmax()), int(others.argmax())] == pair
        tie = explained or gap <= self._rounding(single[pair], wide[pair])
        return Verdict("tie" if tie else "broken", place, gap)

    def null(self, conversation: str, request: Request, output_ids: Sequence[int], width: int) -> NullReplay:
        """Feed vanilla's own tokens in forwards of `width` tokens; count where another token is drawn.

        Forced tokens, which nobody drew, do not count.
        """
        sampler = self._sampler(request)
        given = request.forced.places(output_ids) if request.forced else set[int]()
        self._target.use_kernel("sdpa")
        try:
            feed, differing = self._target.replay(), 0
            feed(request.prompt[:-1])
            chunk = [request.prompt[-1], *output_ids[:-1]]
            for start in range(0, len(chunk), width):
                logits = feed(chunk[start : start + width])
                index = torch.arange(start, start + len(logits), device=logits.device)
                drawn = sampler.choose(logits[None], index[None])[0].tolist()
                expected = output_ids[start : start + len(drawn)]
                pairs = enumerate(zip(drawn, expected, strict=True), start=start)
                differing += sum(a != b for place, (a, b) in pairs if place not in given)
        finally:
            self._target.use_kernel()
        return NullReplay(conversation, len(output_ids) - len(given), differing)

    def _one_token(self, request: Request, output: list[int], place: int) -> tuple[list[int], list[int], int]:
        """Prefix, tokens of the forward, and the row that decides output position `place`."""
        context = [*request.prompt, *output[:place]]
        return context[:-1], context[-1:], 0

    def _wide(
        self, request: Request, other: Generation, place: int, width: int
    ) -> tuple[list[int], list[int], int]:
        """The same in the shape that `other` used there."""
        output = other.output_ids
        if place == 0:
            # The prompt alone, although prompts may have shared a forward: they did so alike in every arm.
            return [], list(request.prompt), len(request.prompt) - 1
        if not other.drafts:
            context = [*request.prompt, *output[:place]]
            return context[:-1], context[-1:] * width, 0
        start = 1
        for emitted, (draft, row) in zip(other.emitted, other.drafts, strict=True):  # noqa: B007
            if place < start + emitted:
                break
            start += emitted
        # The deciding row cannot see the tokens behind it, so any tokens may fill the forward's width.
        path = output[start - 1 : place]
        filler = draft.tokens[row].tolist()
        return [*request.prompt, *output[: start - 1]], [*path, *filler][: 1 + draft.width], len(path) - 1

    def _logits(self, prefix: list[int], tokens: list[int], row: int) -> Tensor:
        """Float32 logits [V] of one row of a forward over `tokens` behind `prefix`."""
        feed = self._target.replay()
        feed(prefix)
        return feed(tokens)[row].float()

    def _rounding(self, single: Tensor, wide: Tensor) -> float:
        """How far rounding can move two tokens apart, in scores, from their logits [2] in both shapes.

        Each moves by as much as the two shapes differ there, or by one spacing of the weights' dtype.
        """
        spacing = torch.finfo(self._target.dtype).eps * single.abs()
        moved = float(torch.maximum(spacing, (single - wide).abs()).max())
        return 2 * moved / (self._params.temperature or 1.0)

    def _scores(self, request: Request, place: int, logits: Tensor) -> Tensor:
        """Perturbed scores [V] for output position `place` from its logits [V]."""
        scores = self._params.process(logits)
        if self._params.greedy:
            return scores
        index = torch.tensor([[place]], device=scores.device)
        return scores + self._sampler(request).gumbel(index)[0, 0]

    def _sampler(self, request: Request) -> TokenSampler:
        return TokenSampler(self._params, [request.key], self._target.vocab_size, self._target.device)
