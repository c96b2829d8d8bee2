"""What a run writes down: raw integers and ids, one record a generation. Formatting happens elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from harness.ledger.quantities import Quantities

BASELINE = "vanilla"
"""The arm that every number is relative to."""
SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 had no exhibits; all else is the same."""

VerdictKind = Literal["identical", "tie", "stop-rule", "broken", "unpaired", "lossy", "forced", "unexplained"]
"""`unpaired`: not comparable token by token, as the prompt already differs from vanilla's (an earlier turn
diverged and was judged there), or as the acceptor keeps the distribution but not the noise (p/q).
`lossy`: the acceptor does not claim to be lossless. `forced`: the number of tokens to keep was given, so the
text means nothing.
`unexplained`: tokens differ, and the engine has no weights here that could tell a tie from a fault."""


class Verdict(NamedTuple):
    """How one generation compares with vanilla's for the same prompt and random stream.

    position: index of the first differing output token, None where there is none.
    gap: difference of the two tokens' perturbed logits there, in the one-token shape (nats).
    """

    kind: VerdictKind
    position: int | None = None
    gap: float | None = None


@dataclass(frozen=True, kw_only=True)
class GenerationRecord(Quantities):
    """One call of an arm on one prompt: one turn, one sample, one repeat.

    An arm emits one token at prefill and the others in rounds, so `len(output_ids) == 1 + sum(emitted)`.
    Rungs of the baseline ladder (`kind="rung"`, other people's loops) have no rounds. `kind="roundless"` is
    an arm of an engine that tells no rounds; whatever is counted in rounds is then unknown.
    """

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
        """A dict of JSON types; `from_json` is its inverse."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["verdict"] = self.verdict._asdict() if self.verdict else None
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> GenerationRecord:
        """Read what `to_json` wrote; a quantity that was not recorded then has its default."""
        verdict = data["verdict"]
        return cls(**{**data, "verdict": Verdict(**verdict) if verdict else None})

    @classmethod
    def names(cls) -> list[str]:
        """The names of all fields, in their order."""
        return [field.name for field in dataclasses.fields(cls)]


class DraftTree(NamedTuple):
    """The draft of one round, whole. Lists are one entry a node; parents come before children.

    round: index into the lists of the generation's record. parents: index of a node, -1 for the pending
    token. kept: nodes on the accepted path, from the root, before trimming. confidence: the drafter's own
    estimates that a node is kept, empty where it gave none.
    """

    round: int
    tokens: list[int]
    parents: list[int]
    kept: list[int]
    confidence: list[float] = []  # noqa: RUF012 - a NamedTuple's default, read only


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """What a run keeps of one generation of an arm so that people can look at it; no number comes from it.

    Bounded, whatever is measured: of a run its first 4 conversations, all their turns, first sample and first
    repeat; of a generation up to 12 rounds, spread evenly over those that drafted something, and none whose
    draft has more than 256 nodes; the texts of its first 1,024 tokens; 2,000 characters of the prompt.

    prompt: what was said last. pieces: text of every token id that the answer or a tree shows. The record of
    the same arm, conversation and turn (sample 0, repeat 0) has the ids and the rounds.
    """

    arm: str
    conversation: str
    turn: int
    prompt: str
    pieces: dict[int, str]
    trees: list[DraftTree]

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types; `from_json` is its inverse."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["pieces"] = {str(token): text for token, text in self.pieces.items()}
        data["trees"] = [tree._asdict() for tree in self.trees]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Exhibit:
        """Read what `to_json` wrote."""
        pieces = {int(token): text for token, text in data["pieces"].items()}
        return cls(**{**data, "pieces": pieces, "trees": [DraftTree(**tree) for tree in data["trees"]]})


class NullReplay(NamedTuple):
    """Vanilla's own tokens fed again in verify-shaped forwards: how often rounding alone changes a token."""

    conversation: str
    num_tokens: int
    num_differing: int


class Failure(NamedTuple):
    """Something that stopped a run or a cell of a sweep.

    kind: "out-of-memory", "interrupted", "error", "config" or "lost" (its process ended without a word);
    where: the arm and conversation, or the cell.
    """

    kind: str
    where: str
    message: str


LAPS_PER_ROUND = 6
"""Readings of the clock that the loop makes a round (see `harness.decoding.loop`), at `Probe.lap_ns` each."""


class Probe(NamedTuple):
    """The machine as this process found it, measured before the first prompt.

    read_bandwidth: bytes per second, streaming a written buffer with all threads or the whole device.
    lap_ns: cost of one clock reading of the time split. verify_ns: nanoseconds of a forward over
    the pending token and n drafted ones, for n = 0, 1, ... (see `harness.profiling.profile`), None where it
    was not
    tried. steps: what verifies n drafted tokens: dynamic, static or compiled. memory: bytes by what they
    hold: weights, packed copies of them, each drafter's own.
    """

    read_bandwidth: float
    lap_ns: float
    verify_ns: list[int | None] = []  # noqa: RUF012 - a NamedTuple's default, read only
    steps: list[str] = []  # noqa: RUF012
    memory: dict[str, int] = {}  # noqa: RUF012


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder, read back. Records of unfinished prompt blocks are not in it.

    manifest: as written before the first token; its keys are those of `RunManifest`.
    """

    folder: str
    manifest: RunManifest
    records: Sequence[GenerationRecord]
    nulls: list[NullReplay] = field(default_factory=list)
    exhibits: Sequence[Exhibit] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    finished: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a run measures: the axes that tables tell runs apart by, each read by its name.

    An axis that is added has a default: what every run that was stored before it did.
    """

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
    """Everything that can explain a number, written before the first token. JSON types only.

    arms: per arm its resolved configuration, with `scope`. rungs: names of the ladder's rungs in this run.
    target: source, revision, dtype, attention, cache, num_parameters, step_bytes (weights that one
    single-token step reads), cache_bytes_per_token, peak facts of the loaded model.
    prompts: count, set hash, template hash, end token ids, categories.
    provenance: git, packages, device, threads (see `harness.system.provenance`).
    """

    run_id: str
    cell: Cell
    arms: dict[str, dict[str, Any]]
    rungs: list[str]
    config: dict[str, Any]
    overrides: list[str]
    target: dict[str, Any]
    prompts: dict[str, Any]
    provenance: dict[str, Any]
    replicate: int = 0
    created: str = ""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types; `from_json` is its inverse."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["cell"] = dataclasses.asdict(self.cell)
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunManifest:
        """Read what `to_json` wrote."""
        return cls(**{**data, "cell": Cell(**data["cell"])})
