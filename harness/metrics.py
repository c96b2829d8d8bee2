"""Metrics: pure functions from the ledger (generation records) to numbers; what protocol.md calls what.

Every function takes the records of one arm, in any order. A number that the records cannot tell is nan.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from harness.records import GenerationRecord

Records = Sequence[GenerationRecord]
Place = tuple[str, int, int]
"""(conversation, turn, sample): what the generations of two arms are paired by."""

STAGES = ("draft", "verify", "accept", "commit", "other")
_LOOP_NGRAM = 8
_MAX_STRETCHES = 16


def place(record: GenerationRecord) -> Place:
    """See `Place`."""
    return record.conversation, record.turn, record.sample


def by_conversation(records: Records) -> dict[str, list[GenerationRecord]]:
    """The records of each conversation (the cluster of the statistics), sorted by its name."""
    clusters: dict[str, list[GenerationRecord]] = defaultdict(list)
    for record in records:
        clusters[record.conversation].append(record)
    return dict(sorted(clusters.items()))


def mean_length(records: Records) -> float:
    """Output tokens of a generation."""
    return _mean(len(r.output_ids) for r in records)


def ratio(amount: float, cost: float) -> float:
    """Their quotient; nan over nothing."""
    return amount / cost if cost else float("nan")


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return fmean(found) if found else float("nan")


def _num_rounds(records: Records) -> int:
    return sum(len(r.emitted) for r in records)


def tau(records: Records) -> float:
    """The headline: tokens emitted in rounds over rounds, bonus included, trimmed, pooled. Vanilla has 1."""
    return ratio(sum(sum(r.emitted) for r in records), _num_rounds(records))


def macro_tau(records: Records) -> float:
    """Mean over conversations of each one's tau."""
    return _mean(tau(group) for group in by_conversation(records).values() if _num_rounds(group))


def untrimmed_tau(records: Records) -> float:
    """As `tau`, with the tokens that were cut off at the end token and the cap."""
    return ratio(sum(sum(r.accepted) + len(r.accepted) for r in records), _num_rounds(records))


def as_eagle(records: Records) -> float:
    """What EAGLE's published tables seem to hold: mean over turns of new tokens over the last cycle's index.

    New tokens are untrimmed and without the prefill's; the index counts from 0 (hence too high a number), and
    turns of one cycle, where it is 0, are left out (EAGLE repository, `cb7e084`).
    """
    turns = [r for r in records if len(r.accepted) > 1]
    return _mean((sum(r.accepted) + len(r.accepted)) / (len(r.accepted) - 1) for r in turns)


def as_vllm(records: Records) -> float:
    """vLLM's mean acceptance length: 1 + accepted over rounds that carried a draft, before trimming."""
    accepted = [a for r in records for a, n in zip(r.accepted, r.drafted, strict=True) if n]
    return 1 + _mean(accepted)


def as_spec_bench(records: Records) -> float:
    """Spec-Bench's mean accepted tokens: all steps pooled, trimmed, the prefill a step of one token.

    That is how its wrapper of prompt lookup counts (`fd2c1cd`); its tree methods leave the prefill out.
    """
    arms = [r for r in records if r.kind == "arm"]
    return ratio(sum(len(r.output_ids) for r in arms), _num_rounds(arms) + len(arms))


def histogram(records: Records) -> tuple[int, ...]:
    """Rounds by accepted length 0, 1, 2, ... (before trimming)."""
    counts = Counter(length for r in records for length in r.accepted)
    return tuple(counts[length] for length in range(max(counts) + 1)) if counts else ()


def acceptance_by_position(records: Records) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Joint and conditional acceptance at draft positions 1, 2, ...

    joint: of the rounds with a draft, the share that kept at least that many tokens (vLLM's). conditional: of
    the rounds that kept all before it and had a token there, the share that kept that one too.
    """
    rounds = [
        (length, depth) for r in records for length, depth in zip(r.accepted, r.depth, strict=True) if depth
    ]
    joint, conditional = [], []
    for position in range(1, max((depth for _, depth in rounds), default=0) + 1):
        kept = sum(length >= position for length, _ in rounds)
        tried = sum(length >= position - 1 and depth >= position for length, depth in rounds)
        joint.append(kept / len(rounds))
        conditional.append(ratio(kept, tried))
    return tuple(joint), tuple(conditional)


def tau_along(records: Records) -> tuple[int, tuple[float, ...]]:
    """Tokens a round along the output: stride, and untrimmed tau of the rounds that began in each stretch.

    The stride, in output tokens, is a power of two, 4 or more, that makes 16 stretches or fewer.
    """
    longest = max((len(r.output_ids) for r in records), default=0)
    stride = 4
    while longest > stride * _MAX_STRETCHES:
        stride *= 2
    rounds: dict[int, list[int]] = defaultdict(list)
    for record in records:
        begin = 1
        for accepted, emitted in zip(record.accepted, record.emitted, strict=True):
            rounds[begin // stride].append(accepted + 1)
            begin += emitted
    return stride, tuple(_mean(rounds[stretch]) for stretch in range(max(rounds, default=-1) + 1))


def n_alpha(records: Records) -> tuple[float, ...]:
    """0-alpha, 1-alpha, ...: how often the token that n guessed features went into is kept, in a chain.

    EAGLE (arXiv 2401.15077, section 4.1): acceptance at a place of a chain where all before it were kept, n
    being the features of its input that the drafter had guessed itself. Empty where any draft was a tree.
    """
    if any(r.drafted != r.depth for r in records):
        return ()
    return acceptance_by_position(records)[1]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All that the rounds of an arm say about acceptance.

    num_drafted: nodes. num_verified: tokens that went through the target (drafted and pending).
    num_wasted: drafted and not accepted. coverage: rounds with a draft over rounds.
    along_stride, along: see `tau_along`. The others: see the functions of their names.
    """

    num_rounds: int
    num_drafted: int
    num_verified: int
    num_wasted: int
    tau: float
    macro_tau: float
    untrimmed_tau: float
    as_eagle: float
    as_vllm: float
    as_spec_bench: float
    coverage: float
    joint: tuple[float, ...]
    conditional: tuple[float, ...]
    n_alpha: tuple[float, ...]
    histogram: tuple[int, ...]
    along_stride: int
    along: tuple[float, ...]


def ledger(records: Records) -> Ledger:
    """Everything about acceptance at once."""
    num_rounds, num_drafted = _num_rounds(records), sum(sum(r.drafted) for r in records)
    joint, conditional = acceptance_by_position(records)
    along_stride, along = tau_along(records)
    return Ledger(
        num_rounds=num_rounds,
        num_drafted=num_drafted,
        num_verified=num_drafted + num_rounds,
        num_wasted=num_drafted - sum(sum(r.accepted) for r in records),
        tau=tau(records),
        macro_tau=macro_tau(records),
        untrimmed_tau=untrimmed_tau(records),
        as_eagle=as_eagle(records),
        as_vllm=as_vllm(records),
        as_spec_bench=as_spec_bench(records),
        coverage=ratio(sum(n > 0 for r in records for n in r.drafted), num_rounds),
        joint=joint,
        conditional=conditional,
        n_alpha=n_alpha(records),
        histogram=histogram(records),
        along_stride=along_stride,
        along=along,
    )


def is_timed(records: Records) -> bool:
    """Whether the clock counted, for every one of them."""
    return bool(records) and all(r.timed and r.total_ns > 0 for r in records)


def tokens_per_s(records: Records) -> float:
    """Output tokens over seconds of whole calls, prefill included."""
    if not is_timed(records):
        return float("nan")
    return ratio(sum(len(r.output_ids) for r in records), sum(r.total_ns for r in records) * 1e-9)


def latency_s(records: Records) -> float:
    """Median seconds of a sequence from entering the batch to its last token."""
    known = [r.latency_ns for r in records if r.latency_ns > 0]
    return median(known) * 1e-9 if known and is_timed(records) else float("nan")


def latency_per_token_s(records: Records) -> float:
    """Seconds between tokens as one sequence sees them, its prefill included, pooled."""
    known = [r for r in records if r.latency_ns > 0]
    if not is_timed(records):
        return float("nan")
    return ratio(sum(r.latency_ns for r in known) * 1e-9, sum(len(r.output_ids) for r in known))


def decode_tokens_per_s(records: Records) -> float:
    """Tokens emitted in rounds over seconds outside the prefill."""
    if not is_timed(records) or not _num_rounds(records):
        return float("nan")
    return ratio(sum(sum(r.emitted) for r in records), decode_ns(records) * 1e-9)


def decode_ns(records: Records) -> int:
    """Nanoseconds of the calls outside their prefill."""
    return sum(r.total_ns - r.prefill_ns for r in records)


def draft_ns(records: Records) -> int:
    """Nanoseconds that the drafter took, seeing outcomes included."""
    return sum(sum(r.draft_ns) for r in records)


def mean_of_rates(records: Records) -> float:
    """Mean over conversations of each one's tokens per second, as papers average."""
    return _mean(tokens_per_s(group) for group in by_conversation(records).values())


def time_split(records: Records) -> dict[str, float]:
    """Shares of decode time by `STAGES`; empty where no round was timed."""
    if not is_timed(records) or not _num_rounds(records):
        return {}
    whole = decode_ns(records)
    split = {name: sum(sum(getattr(r, f"{name}_ns")) for r in records) / whole for name in STAGES[:-1]}
    return {**split, "other": 1 - sum(split.values())}


def loop_overhead(records: Records) -> float:
    """Share of a round outside the target's forward; of it the drafter has `time_split()["draft"]`."""
    split = time_split(records)
    return 1 - split["verify"] if split else float("nan")


def mean_context(records: Records) -> float:
    """Mean number of tokens before an output token."""
    num_tokens = sum(len(r.output_ids) for r in records)
    before = sum(len(r.output_ids) * (r.num_prompt_tokens + (len(r.output_ids) - 1) / 2) for r in records)
    return ratio(before, num_tokens)


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
    return ratio(sum(sum(r.verify_ns) for r in records) * 1e-9, _batch_rounds(records))


def round_s(records: Records) -> float:
    """Mean seconds of a whole round, over all sequences of its batch; nan without rounds."""
    return ratio(decode_ns(records) * 1e-9, _batch_rounds(records))


def _batch_rounds(records: Records) -> float:
    """A batch's sequences share its rounds."""
    return sum(len(record.emitted) / record.batch_size for record in records)


def energy_per_token_j(records: Records) -> float:
    """Joules of the device for a token; nan where its meter was not read."""
    if any(record.energy_mj is None for record in records):
        return float("nan")
    return ratio(sum(r.energy_mj or 0 for r in records) * 1e-3, sum(len(r.output_ids) for r in records))


def looped_share(records: Records) -> float:
    """Share of the output's 8-grams that stood in the same output before."""
    num_grams = num_repeated = 0
    for record in records:
        ids = record.output_ids
        grams = [tuple(ids[i : i + _LOOP_NGRAM]) for i in range(len(ids) - _LOOP_NGRAM + 1)]
        num_grams += len(grams)
        num_repeated += len(grams) - len(set(grams))
    return ratio(num_repeated, num_grams) if num_grams else 0.0 if records else float("nan")
