"""Metrics: pure functions from the ledger (generation records) to numbers; what protocol.md calls what.

Every function takes the records of one arm, in any order, as records or as columns. A number that they cannot
tell is nan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from harness.store.columns import Columns, Records

STAGES = ("draft", "verify", "accept", "commit", "other")
_MAX_STRETCHES = 16


def mean_length(records: Records) -> float:
    """Output tokens of a generation."""
    return _mean(Columns.of(records).num_tokens)


def ratio(amount: float, cost: float) -> float:
    """Their quotient; nan over nothing."""
    return float(amount) / float(cost) if cost else float("nan")


def _mean(values: Iterable[float] | NDArray[np.number]) -> float:
    found = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return fmean(found) if found else float("nan")


def _num_rounds(columns: Columns) -> int:
    return len(columns.emitted)


def tau(records: Records) -> float:
    """The headline: tokens emitted in rounds over rounds, bonus included, trimmed, pooled. Vanilla has 1."""
    columns = Columns.of(records)
    return ratio(columns.emitted.sum(), _num_rounds(columns))


def macro_tau(records: Records) -> float:
    """Mean over conversations of each one's tau."""
    columns = Columns.of(records)
    emitted, rounds = columns.clusters(columns.rounds_sum(columns.emitted), columns.num_rounds)
    return _mean(emitted[rounds > 0] / rounds[rounds > 0])


def untrimmed_tau(records: Records) -> float:
    """As `tau`, with the tokens that were cut off at the end token and the cap."""
    columns = Columns.of(records)
    return ratio(columns.accepted.sum() + _num_rounds(columns), _num_rounds(columns))


def as_eagle(records: Records) -> float:
    """What EAGLE's published tables seem to hold: mean over turns of new tokens over the last cycle's index.

    New tokens are untrimmed and without the prefill's; the index counts from 0 (hence too high a number), and
    turns of one cycle, where it is 0, are left out (EAGLE repository, `cb7e084`).
    """
    columns = Columns.of(records)
    made, last = columns.rounds_sum(columns.accepted) + columns.num_rounds, columns.num_rounds - 1
    return _mean(made[last > 0] / last[last > 0])


def as_vllm(records: Records) -> float:
    """vLLM's mean acceptance length: 1 + accepted over rounds that carried a draft, before trimming."""
    columns = Columns.of(records)
    drafting = columns.drafted > 0
    return 1 + ratio(columns.accepted[drafting].sum(), drafting.sum())


def as_spec_bench(records: Records) -> float:
    """Spec-Bench's mean accepted tokens: all steps pooled, trimmed, the prefill a step of one token.

    That is how its wrapper of prompt lookup counts (`fd2c1cd`); its tree methods leave the prefill out.
    """
    columns = Columns.of(records)
    steps = (columns.num_rounds + 1)[columns.is_arm]
    return ratio(columns.num_tokens[columns.is_arm].sum(), steps.sum())


def histogram(records: Records) -> tuple[int, ...]:
    """Rounds by accepted length 0, 1, 2, ... (before trimming)."""
    return tuple(np.bincount(Columns.of(records).accepted).tolist())


def acceptance_by_position(records: Records) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Joint and conditional acceptance at draft positions 1, 2, ...

    joint: of the rounds with a draft, the share that kept at least that many tokens (vLLM's). conditional: of
    the rounds that kept all before it and had a token there, the share that kept that one too.
    """
    columns = Columns.of(records)
    drafting = columns.depth > 0
    length, depth = columns.accepted[drafting], columns.depth[drafting]
    joint, conditional = [], []
    for position in range(1, depth.max(initial=0) + 1):
        kept = (length >= position).sum()
        tried = ((length >= position - 1) & (depth >= position)).sum()
        joint.append(ratio(kept, len(depth)))
        conditional.append(ratio(kept, tried))
    return tuple(joint), tuple(conditional)


def tau_along(records: Records) -> tuple[int, tuple[float, ...]]:
    """Tokens a round along the output: stride, and untrimmed tau of the rounds that began in each stretch.

    The stride, in output tokens, is a power of two, 4 or more, that makes 16 stretches or fewer.
    """
    columns = Columns.of(records)
    stride = 4
    while columns.num_tokens.max(initial=0) > stride * _MAX_STRETCHES:
        stride *= 2
    stretch = columns.begins // stride
    tokens, rounds = np.bincount(stretch, weights=columns.accepted + 1), np.bincount(stretch)
    return stride, tuple(map(ratio, tokens, rounds))


def n_alpha(records: Records) -> tuple[float, ...]:
    """0-alpha, 1-alpha, ...: how often the token that n guessed features went into is kept, in a chain.

    EAGLE (arXiv 2401.15077, section 4.1): acceptance at a place of a chain where all before it were kept, n
    being the features of its input that the drafter had guessed itself. Empty where any draft was a tree.
    """
    columns = Columns.of(records)
    if not np.array_equal(columns.drafted, columns.depth):
        return ()
    return acceptance_by_position(columns)[1]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All that the rounds of an arm say about acceptance.

    Fields without documentation of their own are results of the functions of the same names.
    """

    num_rounds: int
    num_drafted: int
    """Nodes of all drafts."""
    num_verified: int
    """Tokens that went through the target, drafted and pending ones."""
    num_wasted: int
    """Tokens that were drafted and not accepted."""
    tau: float
    macro_tau: float
    untrimmed_tau: float
    as_eagle: float
    as_vllm: float
    as_spec_bench: float
    coverage: float
    """Share of rounds that had a draft."""
    joint: tuple[float, ...]
    conditional: tuple[float, ...]
    n_alpha: tuple[float, ...]
    histogram: tuple[int, ...]
    along_stride: int
    """Like `along`, a result of `tau_along`."""
    along: tuple[float, ...]


def ledger(records: Records) -> Ledger:
    """Everything about acceptance at once."""
    columns = Columns.of(records)
    num_rounds, num_drafted = _num_rounds(columns), int(columns.drafted.sum())
    joint, conditional = acceptance_by_position(columns)
    along_stride, along = tau_along(columns)
    return Ledger(
        num_rounds=num_rounds,
        num_drafted=num_drafted,
        num_verified=num_drafted + num_rounds,
        num_wasted=num_drafted - int(columns.accepted.sum()),
        tau=tau(columns),
        macro_tau=macro_tau(columns),
        untrimmed_tau=untrimmed_tau(columns),
        as_eagle=as_eagle(columns),
        as_vllm=as_vllm(columns),
        as_spec_bench=as_spec_bench(columns),
        coverage=ratio((columns.drafted > 0).sum(), num_rounds),
        joint=joint,
        conditional=conditional,
        n_alpha=n_alpha(columns),
        histogram=histogram(columns),
        along_stride=along_stride,
        along=along,
    )


def is_timed(records: Records) -> bool:
    """Whether the clock counted, for every one of them."""
    columns = Columns.of(records)
    return bool(len(columns)) and bool((columns.timed & (columns.total_ns > 0)).all())


def tokens_per_s(records: Records) -> float:
    """Output tokens over seconds of whole calls, prefill included."""
    columns = Columns.of(records)
    if not is_timed(columns):
        return float("nan")
    return ratio(columns.num_tokens.sum(), columns.total_ns.sum() * 1e-9)


def latency_s(records: Records) -> float:
    """Median seconds of a sequence from entering the batch to its last token."""
    columns = Columns.of(records)
    known = columns.latency_ns[columns.latency_ns > 0]
    return float(np.median(known)) * 1e-9 if len(known) and is_timed(columns) else float("nan")


def latency_per_token_s(records: Records) -> float:
    """Seconds between tokens as one sequence sees them, its prefill included, pooled."""
    columns = Columns.of(records)
    known = columns.latency_ns > 0
    if not is_timed(columns):
        return float("nan")
    return ratio(columns.latency_ns[known].sum() * 1e-9, columns.num_tokens[known].sum())


def decode_tokens_per_s(records: Records) -> float:
    """Tokens emitted in rounds over seconds outside the prefill."""
    columns = Columns.of(records)
    if not is_timed(columns) or not _num_rounds(columns):
        return float("nan")
    return ratio(columns.emitted.sum(), decode_ns(columns) * 1e-9)


def decode_ns(records: Records) -> int:
    """Nanoseconds of the calls outside their prefill."""
    columns = Columns.of(records)
    return int((columns.total_ns - columns.prefill_ns).sum())


def prefill_share(records: Records) -> float:
    """Share of the time of whole calls that is prefill; nan where it was not timed, as with a server."""
    columns = Columns.of(records)
    spent = columns.prefill_ns.sum()
    return ratio(spent, columns.total_ns.sum()) if spent else float("nan")


def mean_of_rates(records: Records) -> float:
    """Mean over conversations of each one's tokens per second, as papers average."""
    columns = Columns.of(records)
    if not is_timed(columns):
        return float("nan")
    tokens, spent_ns = columns.clusters(columns.num_tokens, columns.total_ns)
    return _mean(tokens / (spent_ns * 1e-9))


def time_split(records: Records) -> dict[str, float]:
    """Shares of decode time by `STAGES`; empty where no round was timed."""
    columns = Columns.of(records)
    if not is_timed(columns) or not _num_rounds(columns):
        return {}
    whole = decode_ns(columns)
    split = {name: ratio(getattr(columns, f"{name}_ns").sum(), whole) for name in STAGES[:-1]}
    return {**split, "other": 1 - sum(split.values())}


def loop_overhead(records: Records) -> float:
    """Share of a round outside the target's forward; of it the drafter has `time_split()["draft"]`."""
    split = time_split(records)
    return 1 - split["verify"] if split else float("nan")


def mean_context(records: Records) -> float:
    """Mean number of tokens before an output token."""
    columns = Columns.of(records)
    length = columns.num_tokens.astype(np.int64)
    before = length * (columns.num_prompt_tokens + (length - 1) / 2)
    return ratio(before.sum(), length.sum())


def roof_tokens_per_s(
    step_bytes: float, cache_bytes: float, context: float, batch_size: int, bandwidth: float
) -> float:
    """Tokens per second of plain decoding that only reads its bytes, at `bandwidth` (bytes per second).

    A step of the batch reads `step_bytes` of weights once, and `cache_bytes` per token of `context` for every
    sequence.
    """
    return ratio(batch_size * bandwidth, step_bytes + batch_size * cache_bytes * context)


def forward_s(records: Records) -> float:
    """Mean seconds of one forward of the target, over all sequences of its batch; nan without rounds."""
    columns = Columns.of(records)
    return ratio(columns.verify_ns.sum() * 1e-9, _batch_rounds(columns))


def round_s(records: Records) -> float:
    """Mean seconds of a whole round, over all sequences of its batch; nan without rounds."""
    columns = Columns.of(records)
    return ratio(decode_ns(columns) * 1e-9, _batch_rounds(columns))


def _batch_rounds(columns: Columns) -> float:
    """A batch's sequences share its rounds."""
    return float((columns.num_rounds / columns.batch_size).sum())


def energy_per_token_j(records: Records) -> float:
    """Joules of the device for a token; nan where its meter was not read."""
    columns = Columns.of(records)
    if (columns.energy_mj < 0).any():
        return float("nan")
    return ratio(columns.energy_mj.sum() * 1e-3, columns.num_tokens.sum())


def looped_share(records: Records) -> float:
    """Share of the output's 8-grams that stood in the same output before."""
    columns = Columns.of(records)
    return _share_of_grams(columns, columns.num_repeated)


def looping_share(records: Records) -> float:
    """Share of the output's 8-grams that stood in the same output at most 64 tokens before."""
    columns = Columns.of(records)
    return _share_of_grams(columns, columns.num_looping)


def _share_of_grams(columns: Columns, counts: NDArray[np.int32]) -> float:
    num_grams = columns.num_grams.sum()
    return ratio(counts.sum(), num_grams) if num_grams else 0.0 if len(columns) else float("nan")
