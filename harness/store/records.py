"""The records of a run: raw integers and ids, one record per generation. Formatting happens elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import ConfigDict

from harness.ledger.quantities import Quantities

BASELINE = "vanilla"
"""The arm that every number is relative to."""
SCHEMA_VERSION = 3
READABLE_VERSIONS = (1, 2, 3)
"""Version 1 had no exhibits, version 2 no chain and no load of blocks; all else is the same."""
STRICT = ConfigDict(extra="forbid", strict=True)
"""How types are read from a store: nothing is converted, and no field is unknown."""

VerdictKind = Literal["identical", "tie", "stop-rule", "broken", "unpaired", "lossy", "forced", "unexplained"]
"""`unpaired`: not comparable token by token, as the prompt already differs from vanilla's (an earlier turn
diverged and was judged there), or as the acceptor keeps the distribution but not the noise (p/q).
`lossy`: the acceptor does not claim to be lossless. `forced`: the number of tokens to keep was given, so the
text means nothing.
`unexplained`: tokens differ, and the engine has no weights here that could tell a tie from a fault."""


class Verdict(NamedTuple):
    """How one generation compares with vanilla's for the same prompt and random stream."""

    kind: VerdictKind
    position: int | None = None
    """The index of the first output token that differs, None if none does."""
    gap: float | None = None
    """The difference of the perturbed logits of the two tokens there, in nats, in a one-token forward."""


@dataclass(frozen=True, kw_only=True)
class GenerationRecord(Quantities):
    """One call of an arm on one prompt: one turn, one sample, one repeat.

    An arm emits one token at prefill and the others in rounds, so `len(output_ids) == 1 + sum(emitted)`.
    Rungs of the baseline ladder (`kind="rung"`, other people's loops) have no rounds. `kind="roundless"` is
    an arm of an engine that tells no rounds; whatever is counted in rounds is then unknown.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    arm: str
    """The name of the method, or of the rung."""
    kind: Literal["arm", "roundless", "rung"] = "arm"
    conversation: str
    category: str
    turn: int = 0
    sample: int = 0
    """The index of the seed."""
    repeat: int = 0
    order: int = 0
    """The place of its pass among those of its block, which are shuffled."""
    batch_size: int = 1
    timed: bool = True
    prompt_hash: str
    num_prompt_tokens: int
    output_ids: list[int]
    stop: Literal["end", "cap", "context"]
    """An end token, max_new_tokens, or the target's limit."""
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        if self.kind == "arm":
            assert len(self.output_ids) == 1 + sum(self.emitted), "tokens and rounds disagree"
            assert all(e <= a + 1 for a, e in zip(self.accepted, self.emitted, strict=True))
        if self.kind == "roundless":
            rounds = [*self.drafted, *self.depth, *self.accepted, *self.emitted]
            assert not rounds, "rounds of an arm that tells none"

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types; `harness.store.integrity.shapes` reads it."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["verdict"] = self.verdict._asdict() if self.verdict else None
        return data

    @classmethod
    def names(cls) -> list[str]:
        """The names of all fields, in their order."""
        return [field.name for field in dataclasses.fields(cls)]


class DraftTree(NamedTuple):
    """The whole draft of one round. Lists have one entry per node, and parents come before children."""

    round: int
    """The index into the lists of the generation's record."""
    tokens: list[int]
    parents: list[int]
    """The index of each node's parent, -1 for the pending token."""
    kept: list[int]
    """The nodes on the accepted path, from the root, before trimming."""
    confidence: list[float] = []  # noqa: RUF012 - the default of a NamedTuple, which is only read
    """The drafter's own estimate that each node is kept; empty if it gave none."""


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """Texts and draft trees of one generation for people to look at; no number is computed from them.

    Its size is bounded. A run keeps exhibits of its first 4 conversations only, with all their turns, for the
    first sample and the first repeat. An exhibit has at most 12 rounds, spread evenly over those that drafted
    something, none of more than 256 nodes; the texts of the first 1,024 tokens; and 2,000 characters of the
    prompt. The record of the same arm, conversation and turn (sample 0, repeat 0) has the ids and the rounds.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    arm: str
    conversation: str
    turn: int
    prompt: str
    """The last message of the user."""
    pieces: dict[int, str]
    """The text of every token id that occurs in the answer or in a tree."""
    trees: list[DraftTree]
    picture: list[str] | None = None
    """What an image model's answer looks like, at most 128 pixels a side: per row of pixels, their colours as
    hexadecimal digits, six each."""

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types; `harness.store.integrity.shapes` reads it."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["pieces"] = {str(token): text for token, text in self.pieces.items()}
        data["trees"] = [tree._asdict() for tree in self.trees]
        if self.picture is None:
            del data["picture"]
        return data


class NullReplay(NamedTuple):
    """Vanilla's own tokens fed again in verify-shaped forwards: how often rounding alone changes a token."""

    conversation: str
    num_tokens: int
    num_differing: int


class Failure(NamedTuple):
    """Something that stopped a run or a cell of a sweep."""

    kind: str
    """"out-of-memory", "interrupted", "error", "config", "lost" (the process died without a message),
    "stopped" (by a signal, in every measurement of a block), "not-finite" (the target's logits),
    "illegal-draft", "no-quality" (of lossy output; never stored), or what an engine outside this process did:
    see `harness.engines.faults.FaultKind`."""
    where: str
    """The arm and the conversation, or the cell."""
    message: str
    arm: str = ""
    """The arm whose own fault it is: its row counts for nothing, and all rows if it is vanilla. "": no arm's;
    something stopped the whole run."""


LAPS_PER_ROUND = 6
"""Readings of the clock per round of `harness.decoding.loop`, each of which costs `Probe.lap_ns`."""


class Probe(NamedTuple):
    """The speed of the machine, measured by each process before its first prompt."""

    read_bandwidth: float
    """Bytes per second of reading a buffer that was written before, with all threads or the whole device."""
    lap_ns: float
    """The cost of one clock reading of the time split, in nanoseconds."""
    verify_ns: list[int | None] = []  # noqa: RUF012 - the default of a NamedTuple, which is only read
    """Nanoseconds of a forward over the pending token and n drafted ones, for n = 0, 1, ...; None where it
    was not tried."""
    steps: list[str] = []  # noqa: RUF012
    """The kind of step that verifies n drafted tokens: dynamic, static or compiled."""
    memory: dict[str, int] = {}  # noqa: RUF012
    """Bytes by what they hold: weights, packed copies of them, the own weights of each drafter."""


@dataclass(frozen=True, kw_only=True)
class BlockLoad:
    """Who used the machine while one block was measured, and what follows for its times.

    Shares of processor time are of all cores on which this process may run. None is not known: this system
    or this engine does not report it. `harness.system.load` measures all this and has the thresholds.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    block: str
    wall_s: float
    """Seconds from the first pass to the end of the last one, without those in which the machine slept."""
    own_share: float | None = None
    """Processor time of this process, its children and the other processes of its run."""
    others_share: float | None = None
    """Processor time of everybody else."""
    worst_others_share: float | None = None
    """The same in the worst window, which is one pass or several that last a second together."""
    steal_share: float | None = None
    """Time that the hypervisor gave to other virtual machines."""
    throttled_share: float | None = None
    """Share of the wall time for which a quota of the control group held the process back."""
    stopped_s: float | None = None
    """Seconds in which neither this process ran nor anybody else who could have kept it waiting."""
    num_stops: int = 0
    """How often the process was continued after a stop (SIGCONT)."""
    suspended_s: float | None = None
    """Seconds for which the whole machine slept."""
    bandwidth_loss: float | None = None
    """By how much a short read-bandwidth probe before or after the block fell below the run's best one."""
    gpu_others: int | None = None
    """Compute processes of others on the GPU."""
    gpu_others_share: float | None = None
    """The most that they used of its time."""
    gpu_slowed_share: float | None = None
    """Share of the looks at the GPU at which heat or power had slowed it down."""
    gpu_slowdowns: tuple[str, ...] = ()
    """The reasons that the driver gave for that."""
    gpu_sm_mhz: tuple[int, int] | None = None
    """The lowest and the highest clock of the multiprocessors."""
    causes: dict[str, float] = field(default_factory=dict)
    """Why the block counts as disturbed, with the share that each cause took; empty if it was quiet."""
    void: str = ""
    """Why its times mean nothing (the process was stopped), "" if they do."""

    @property
    def severity(self) -> float:
        """The largest share among the causes; by it two measurements of a block are compared."""
        return max(self.causes.values(), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder, read back. Records of unfinished blocks are left out."""

    folder: str
    manifest: RunManifest
    """The manifest as it was written before the first token."""
    records: Sequence[GenerationRecord]
    nulls: list[NullReplay] = field(default_factory=list)
    exhibits: Sequence[Exhibit] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    loads: list[BlockLoad] = field(default_factory=list)
    """The load of each block that was timed and counts; none in runs of versions that did not record it."""
    failures: list[Failure] = field(default_factory=list)
    finished: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The axes by which tables distinguish runs; read each by its name.

    An axis that is added later needs a default: the value of all runs that were stored before.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    target: str
    task: str
    decoding: str
    temperature: float
    batch_size: int
    """Sequences that are decoded at the same time."""
    profile: str
    """How thoroughly it was measured: `full`, `quick` or `acceptance`."""
    baseline: str
    """How vanilla itself is run: `eager` or `strong`."""
    acceptor: str
    engine: str = "local"
    """What decodes: `local` is the loop of this process."""
    scenario: str = "multi_turn"
    """How the turns of a conversation are played."""


@dataclass(frozen=True, kw_only=True)
class RunManifest:
    """Everything that can explain a number, written before the first token. JSON types only."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    run_id: str
    cell: Cell
    arms: dict[str, dict[str, Any]]
    """The resolved configuration of each arm, with its memory `scope`, the `card` of its head, and how
    many of the prompts are `contaminated`: they share 13 words with a prompt that the head was trained on."""
    rungs: list[str]
    """The names of the rungs of the ladder in this run."""
    config: dict[str, Any]
    """The resolved configuration, without secrets and without options that only say where output goes."""
    overrides: list[str]
    """The overrides as they were typed, without secrets."""
    target: dict[str, Any]
    """The card of the loaded model: source, revision, dtype, attention, cache, num_parameters, step_bytes
    (weights that a single-token step reads), cache_bytes_per_token and others."""
    prompts: dict[str, Any]
    """The number of prompts, their hash, the hash of the template, the end token ids and the task's card."""
    provenance: dict[str, Any]
    """Git, packages, device and threads; see `harness.system.provenance`."""
    replicate: int = 0
    created: str = ""
    """When the manifest was written, in ISO 8601."""
    schema_version: int = SCHEMA_VERSION
    chain: str = field(default="", compare=False)
    """The link that the journal's first line follows, made from all of the above when the manifest is
    written; "" in a run of an earlier version."""

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types; `harness.store.integrity.shapes` reads it."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["cell"] = dataclasses.asdict(self.cell)
        return data
