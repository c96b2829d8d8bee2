"""Generations as arrays, one per field, so that metrics over a million of them take seconds.

Shapes: N generations; M rounds and P bursts of all generations, one generation after the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from harness.ledger.quantities import BURST_COUNTS, BURST_TIMES, METERED, ROUND_COUNTS, ROUND_TIMES, TIMES
from harness.store.records import GenerationRecord, VerdictKind

Ints = NDArray[np.int64]
Counts = NDArray[np.int32]
Flags = NDArray[np.bool_]

VERDICTS: tuple[VerdictKind, ...] = get_args(VerdictKind)
NAMES = ("arm", "kind", "conversation")
SCALARS = ("turn", "sample", "repeat", "batch_size", "num_prompt_tokens", "timed")
"""Fields with one value per generation that are not quantities of the ledger."""
LISTS = ("output_ids", *ROUND_COUNTS, *ROUND_TIMES, *BURST_COUNTS, *BURST_TIMES)
"""Fields with one list per generation."""
LOOP_NGRAM = 8
LOOP_PERIOD = 64
"""The longest period, in tokens, of text that counts as a loop."""
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Named(NamedTuple):
    """The name of each generation [N], as an index into the distinct names."""

    names: tuple[Any, ...]
    indices: Counts

    @classmethod
    def of(cls, names: Sequence[Any]) -> Named:
        """Encode names; the distinct ones keep the order of their first occurrence."""
        known = tuple(dict.fromkeys(names))
        place = {name: number for number, name in enumerate(known)}
        return cls(known, np.fromiter((place[name] for name in names), np.int32, len(names)))

    def among(self, known: Sequence[Any]) -> Counts:
        """The same names as indices [N] into `known`."""
        place = {name: number for number, name in enumerate(known)}
        return np.array([place[name] for name in self.names], np.int32)[self.indices]


class Ragged(NamedTuple):
    """The lists of several generations, concatenated, and the length of each [N]."""

    values: NDArray[Any]
    lengths: Counts

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Ragged:
        """Concatenate one list per generation."""
        flat = np.fromiter((value for one in lists for value in one), np.int64)
        return cls(flat, np.array([len(one) for one in lists], np.int32))

    def sums(self) -> Ints:
        """The sum of each list; 0 for an empty one."""
        total = np.concatenate([[0], np.cumsum(self.values, dtype=np.int64)])
        ends = np.cumsum(self.lengths, dtype=np.int64)
        return np.asarray(total[ends] - total[ends - self.lengths])


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Generations of any arms and runs, one array per field. `subset` selects from them, `join` unites them.

    Every quantity of the ledger is an attribute: one per generation is an array [N], with -1 where it is not
    known; a count per round is an array [M]; a time per round is given as its sums [N] over the rounds.
    """

    arms: tuple[str, ...]
    """Names that `arm` holds indices of."""
    conversations: tuple[str, ...]
    """Sorted names that `conversation` holds indices of."""
    run: Counts
    """Which of the joined parts a generation comes from."""
    arm: Counts
    is_arm: Flags
    """False for a rung of the ladder, and for an arm that tells no rounds."""
    conversation: Counts
    turn: Counts
    sample: Counts
    repeat: Counts
    batch_size: Counts
    timed: Flags
    num_prompt_tokens: Counts
    num_tokens: Counts
    """Tokens of the output."""
    num_grams: Counts
    """8-grams of the output."""
    num_repeated: Counts
    """Those of them that stood in the same output before."""
    num_looping: Counts
    """Those of them that stood there at most `LOOP_PERIOD` tokens before."""
    verdict: Counts
    """Index into `VERDICTS`, -1 for none."""
    position: Counts
    """The output position of the first difference from vanilla, -1 for none."""
    num_rounds: Counts
    round_verify_ns: Ints
    """Nanoseconds of the target's forward in each round [M]."""
    num_bursts: Counts
    burst_tokens: Counts
    """Tokens of each burst of a stream [P]."""
    burst_ns: Ints
    """Nanoseconds from when its request was due to each burst [P]."""
    per_generation: Mapping[str, Ints]
    """Quantities [N], by name."""
    per_round: Mapping[str, Counts]
    """Counts [M], by name."""

    def __getattr__(self, name: str) -> Ints:
        """A quantity of the ledger by its name, so that a new one needs no line here."""
        for values in ("per_generation", "per_round"):
            # Python calls this for attributes that do not exist, and while an instance is copied these two
            # do not: reading self.per_generation would then call this method without end.
            if name in self.__dict__.get(values, {}):
                found: Ints = self.__dict__[values][name]
                return found
        raise AttributeError(name)

    def __len__(self) -> int:
        return len(self.arm)

    @classmethod
    def of(cls, records: Records) -> Columns:
        """The columns of records, or of anything that can read itself as columns."""
        if isinstance(records, Columns):
            return records
        if isinstance(records, HasColumns):
            return records.columns()
        return cls.build(
            {name: Named.of([getattr(record, name) for record in records]) for name in NAMES},
            {
                **{name: [getattr(record, name) for record in records] for name in (*SCALARS, *TIMES)},
                **{name: [_known(getattr(record, name)) for record in records] for name in METERED},
            },
            {name: Ragged.of([getattr(record, name) for record in records]) for name in LISTS},
            Named.of([record.verdict.kind if record.verdict else None for record in records]),
            [-1 if (r.verdict is None or (at := r.verdict.position) is None) else at for r in records],
        )

    @classmethod
    def build(
        cls,
        names: Mapping[str, Named],
        scalars: Mapping[str, Sequence[int] | NDArray[Any]],
        lists: Mapping[str, Ragged],
        verdicts: Named,
        positions: Sequence[int] | NDArray[Any],
    ) -> Columns:
        """From the fields `NAMES`, `SCALARS`, `TIMES`, `METERED` and `LISTS` of records, and their verdicts.

        A list that was not recorded for any round counts as zeros.
        """
        ids, num_tokens = lists["output_ids"]
        num_grams, num_repeated, num_looping = _loops(ids, num_tokens)
        conversations = tuple(sorted(names["conversation"].names))
        num_rounds = lists["emitted"].lengths
        rounds = {name: _whole(lists[name], num_rounds) for name in (*ROUND_COUNTS, *ROUND_TIMES)}
        numbers = {name: np.asarray(scalars[name], np.int64) for name in (*TIMES, *METERED)}
        return cls(
            arms=names["arm"].names,
            conversations=conversations,
            run=np.zeros(len(num_tokens), np.int32),
            arm=names["arm"].indices,
            is_arm=names["kind"].among(("rung", "roundless", "arm")) == 2,
            conversation=names["conversation"].among(conversations),
            **{name: np.asarray(scalars[name], np.int32) for name in SCALARS if name != "timed"},
            timed=np.asarray(scalars["timed"], bool),
            num_tokens=num_tokens,
            num_grams=num_grams,
            num_repeated=num_repeated,
            num_looping=num_looping,
            verdict=verdicts.among((None, *VERDICTS)) - 1,
            position=np.asarray(positions, np.int32),
            num_rounds=num_rounds,
            round_verify_ns=rounds["verify_ns"].values,
            num_bursts=lists["arrived"].lengths,
            burst_tokens=lists["arrived"].values.astype(np.int32),
            burst_ns=lists["arrival_ns"].values.astype(np.int64),
            per_generation={**numbers, **{name: rounds[name].sums() for name in ROUND_TIMES}},
            per_round={name: rounds[name].values.astype(np.int32) for name in ROUND_COUNTS},
        )

    def subset(self, chosen: Flags) -> Columns:
        """Select generations by a mask [N]; their order and the indices of names stay."""
        if chosen.all():
            return self
        rounds, bursts = np.repeat(chosen, self.num_rounds), np.repeat(chosen, self.num_bursts)
        masks = {"round_verify_ns": rounds, "burst_tokens": bursts, "burst_ns": bursts}
        kept: dict[str, Any] = {
            name: values[masks.get(name, chosen)] for name, values in self._arrays().items()
        }
        return dataclasses.replace(
            self,
            **kept,
            per_generation={name: values[chosen] for name, values in self.per_generation.items()},
            per_round={name: values[rounds] for name, values in self.per_round.items()},
        )

    @classmethod
    def join(cls, parts: Sequence[Columns]) -> Columns:
        """Concatenate parts; `run` becomes the number of the part."""
        arms = tuple(dict.fromkeys(name for part in parts for name in part.arms))
        conversations = tuple(sorted({name for part in parts for name in part.conversations}))
        own = _concatenated([part._arrays() for part in parts])
        own["run"] = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
        own["arm"] = np.concatenate([Named(part.arms, part.arm).among(arms) for part in parts])
        own["conversation"] = np.concatenate(
            [Named(part.conversations, part.conversation).among(conversations) for part in parts]
        )
        return cls(
            arms=arms,
            conversations=conversations,
            per_generation=_concatenated([part.per_generation for part in parts]),
            per_round=_concatenated([part.per_round for part in parts]),
            **own,
        )

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """The fields that are arrays, by name."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: values for name, values in own.items() if isinstance(values, np.ndarray)}

    @cached_property
    def places(self) -> Ints:
        """(conversation, turn, sample) of each generation [N] as one number; arms are paired by it."""
        place = self.conversation.astype(np.int64) << 40
        return np.asarray(place | (self.turn.astype(np.int64) << 20) | self.sample)

    @cached_property
    def begins(self) -> Ints:
        """The number of output tokens before each round [M]; the prefill emits the first one."""
        ends = np.cumsum(self.emitted, dtype=np.int64)
        before = np.concatenate([[0], ends])[np.cumsum(self.num_rounds) - self.num_rounds]
        return np.asarray(1 + ends - self.emitted - np.repeat(before, self.num_rounds))

    def of_rounds(self, values: NDArray[Any]) -> NDArray[Any]:
        """Repeat the value of each generation [N] for each of its rounds [M]."""
        return np.repeat(values, self.num_rounds)

    def clusters(self, *values: NDArray[Any]) -> tuple[NDArray[np.float64], ...]:
        """Sums [C] of values [N] over the turns, samples and repeats of each conversation, by its name."""
        present = np.unique(self.conversation)
        # float64 is exact up to 2 ** 53, which is a hundred days in nanoseconds.
        return tuple(np.asarray(np.bincount(self.conversation, one)[present], float) for one in values)

    def rounds_sum(self, values: NDArray[Any]) -> Ints:
        """Sum values [M] over the rounds of each generation [N]."""
        return Ragged(values, self.num_rounds).sums()


@runtime_checkable
class HasColumns(Protocol):
    """Records that can be read as columns."""

    def columns(self) -> Columns:
        """Read them."""
        ...


Records = Sequence[GenerationRecord] | HasColumns | Columns


def _concatenated(parts: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Concatenate the arrays of each name."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _whole(lists: Ragged, num_rounds: Counts) -> Ragged:
    """Lists with an entry per round; zeros where an older version of the harness recorded none."""
    if np.array_equal(lists.lengths, num_rounds):
        return lists
    if len(lists.values):
        raise ValueError(f"{len(lists.values)} entries of a quantity for {int(num_rounds.sum())} rounds")
    return Ragged(np.zeros(int(num_rounds.sum()), np.int64), num_rounds)


def _known(value: int | None) -> int:
    return -1 if value is None else value


def _loops(ids: NDArray[Any], lengths: Counts) -> tuple[Counts, Counts, Counts]:
    """The number of 8-grams of each output, of those that stood in it before, and of those shortly before.

    They are compared by 64-bit hashes.
    """
    num_grams = np.maximum(lengths - (LOOP_NGRAM - 1), 0).astype(np.int32)
    owner = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    if not num_grams.any():
        return num_grams, np.zeros_like(num_grams), np.zeros_like(num_grams)
    windows = len(ids) - LOOP_NGRAM + 1
    inside = owner[:windows] == owner[LOOP_NGRAM - 1 :]
    grams = _mixed(owner[:windows].astype(np.uint64))
    for step in range(LOOP_NGRAM):
        grams = _mixed(grams ^ ids[step : step + windows].astype(np.uint64))
    grams, owner = grams[inside], owner[:windows][inside]
    # Equal 8-grams keep their order, so that neighbours are the nearest occurrences.
    order = np.argsort(grams, kind="stable")
    again, soon = np.zeros(len(grams), bool), np.zeros(len(grams), bool)
    again[order[1:]] = grams[order][1:] == grams[order][:-1]
    soon[order[1:]] = again[order[1:]] & (np.diff(order) <= LOOP_PERIOD)
    repeated, looping = (np.bincount(owner[one], minlength=len(lengths)) for one in (again, soon))
    return num_grams, repeated.astype(np.int32), looping.astype(np.int32)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A one-to-one map of 64-bit numbers that spreads them (Stafford's mix 13, of splitmix64)."""
    values = values + _MIX
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))
