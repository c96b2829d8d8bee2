"""The interface between the benchmark and whoever answers its requests: this process, or a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from harness.config import ConfigError, build, configurable
from harness.decoding.acceptance import Acceptor
from harness.decoding.batch import Generation, Request
from harness.decoding.sampling import DecodingParams
from harness.drafting.step_costs import TargetCosts
from harness.target.model import Target
from harness.target.spec import Picture, TargetSpec

Note = Callable[[str], None]
"""Takes a line for the user (not a result)."""


class Method(Protocol):
    """What the benchmark knows of an arm or a rung, whatever engine decodes with it; a `Drafter` is one."""

    @property
    def samples(self) -> bool:
        """False for a method that is only defined at temperature 0."""

    @property
    def knowledge(self) -> str:
        """The source of its drafts, for the tables: how long it remembers, or a corpus; see `Drafter`."""

    @property
    def training_prompts(self) -> Sequence[Path]:
        """Files of the fingerprints of the prompts that its heads were trained on; see
        `tasks.overlap`."""

    def card(self) -> dict[str, Any]:
        """What was loaded, after `Engine.load`; JSON types, for the manifest."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What an engine says about the model that it answers with, once it is ready."""

    tokenizer: Any
    """The tokenizer, in transformers' interface: it renders prompts and decodes answers."""
    end_token_ids: tuple[int, ...]
    """Tokens that end an answer, sorted."""
    max_context: int
    """Tokens of prompt and answer together."""
    vocab_size: int
    """Token ids lie in 0 .. vocab_size - 1."""
    card: dict[str, Any]
    """JSON types, for the manifest: at least `source`; see `TargetSpec.describe` for the other keys."""
    paint: Callable[[Sequence[int]], Picture | None] | None = None
    """Decodes an answer of an image model into a picture; None where it is not a whole one."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What an engine prepares for, before anything is measured."""

    batch_size: int
    """Sequences that run at the same time."""
    timed: bool
    """Whether the clock counts; if not, every `_ns` of a generation is 0."""
    longest_sequence: Callable[[], int]
    """Computes the most tokens that one sequence may have, prompt and answers together."""
    costs: TargetCosts | None = None
    """What the target's forwards cost on this machine, where a table says so."""


@dataclass(frozen=True, kw_only=True)
class MachineProbe:
    """The machine as the engine found it before the first prompt; the fields are those of `records.Probe`."""

    read_bandwidth: float
    """Bytes per second."""
    lap_ns: float
    """Cost of one reading of the clock."""
    verify_ns: list[int | None]
    """Nanoseconds of a forward over n drafted tokens, n = 0, 1, ...; None where it was not timed."""
    steps: list[str]
    """The kind of step that verifies n drafted tokens."""
    memory: dict[str, int]
    """Bytes by what they hold: weights, copies of them, the drafter of each arm."""


@configurable
class Engine(ABC):
    """Base of all engines.

    Calls come in this order: `arm`, `refuse`, `device_facts`, `units` and `baseline` load nothing and are all
    that a dry run needs; then `load`, `prepare`, `examine` and `probe`, once per process; then `begin_run`
    for every run, and `generate` for every call of an arm, with `reset_peak`, `peak_memory_bytes` and
    `energy_mj` around it; at the end `close`.

    An engine tells only what it can: whatever it leaves out is unknown in the tables.
    """

    name: ClassVar[str]
    """As the tables call it."""
    in_process: ClassVar[bool] = False
    """Whether the target is loaded into this process, so that its shape says what a run takes."""
    tells_rounds: ClassVar[bool] = False
    """Whether its generations list every round; if not, nothing that is counted in rounds is known."""
    forces: ClassVar[bool] = False
    """Whether it honours `Request.forced`."""
    coupled: ClassVar[bool] = False
    """Whether it draws with the noise of `Request.key`, so that outputs compare above temperature 0, too."""

    def arm(self, name: str, node: dict[str, Any], serve: Mapping[str, Any]) -> Method:
        """The arm of this engine that the node `methods.NAME` of a configuration describes.

        serve: what the method's YAML says about engines other than `local`, by their names. An engine that
        decodes with an implementation of its own takes its settings from there.

        Raises:
            ConfigError: the node is wrong, or the engine has no such method.
        """
        arm: Method = build(node, f"methods.{name}")
        return arm

    def refuse(self, arms: Mapping[str, Method], rungs: Mapping[str, Method], acceptor: Acceptor) -> None:
        """Look at what the engine is asked to run, before anything is loaded.

        Here: an engine outside this process runs no rungs, and accepts drafted tokens by its own rule.

        Raises:
            ConfigError: something that this engine cannot run, and what to type instead.
        """
        if rungs:
            raise ConfigError(
                f"rungs.{next(iter(rungs))}: needs a target in this process, and engine={self.name} has none;"
                " type ladder=none"
            )
        if not acceptor.lossless:
            raise ConfigError(
                f"acceptor: engine={self.name} accepts drafted tokens by its own rule, which cannot be"
                " forced or relaxed; type accept=coupled"
            )

    @abstractmethod
    def device_facts(self, target: TargetSpec) -> dict[str, Any]:
        """Facts about the machine that decodes; keys as in `system.provenance.device_facts`, at least `type`.

        They are part of a run's identity, so they are the same before and after `load`.
        """

    def units(self, target: TargetSpec) -> list[str]:
        """Names of the cores or GPUs of this machine that a run occupies; see `machine_lock.units_of`."""
        return []

    @abstractmethod
    def baseline(self, target: TargetSpec) -> str:
        """What the tables call the vanilla of this engine."""

    @abstractmethod
    def load(self, target: TargetSpec, arms: Mapping[str, Method], note: Note) -> ServedModel:
        """Get ready to answer with `target` and introduce the arms to it; nothing is timed yet.

        Raises:
            ConfigError: the target cannot be served, or an arm does not fit it.
        """

    def prepare(self, workload: Workload, note: Note) -> None:  # noqa: B027 - a hook
        """Choose and compile what this workload needs; nothing is timed yet."""

    def examine(self, prompts: Sequence[Sequence[int]]) -> None:  # noqa: B027 - a hook
        """Have the arms look at a few prompts [token ids]; nothing of them may be kept.

        Raises:
            ConfigError: an arm finds that it does not fit the target.
        """

    def begin_run(self, logs: Path | None = None) -> None:  # noqa: B027 - a hook
        """A run begins: the arms forget what earlier runs of this process taught them.

        logs: the folder of the run, for the log files of programs that the engine starts.

        Raises:
            EngineFault: a program that the engine needs does not start.
        """

    def close(self) -> None:  # noqa: B027 - a hook
        """End whatever the engine started; calling it again changes nothing."""

    @abstractmethod
    def generate(
        self,
        requests: Sequence[Request],
        method: Method,
        params: DecodingParams,
        acceptor: Acceptor,
        same_question: bool = False,
    ) -> list[Generation]:
        """Decode the requests with `method`, one of the arms or rungs: one generation per request, in order.

        `Workload.batch_size` requests run at the same time. The `total_ns` of the generations add up to the
        time of the call; `latency_ns` is what one request waited. An engine that tells no rounds leaves all
        lists of the rounds empty.

        same_question: all requests of this call and of the method's last one belong to one question, so that
        the method may use its memory of the earlier call if its scope reaches that far.
        """

    def probe(self, bandwidth_gib: float | None) -> MachineProbe | None:
        """Measure the machine of a timed run; None where the engine cannot.

        bandwidth_gib: see `Measure.bandwidth_gib`.
        """
        return None

    def reset_peak(self) -> None:  # noqa: B027 - a hook
        """Begin a new maximum of `peak_memory_bytes`, where the device can."""

    def peak_memory_bytes(self) -> int | None:
        """The most memory that was in use since `reset_peak`; None where it is unknown."""
        return None

    def energy_mj(self) -> int | None:
        """Millijoules that the device has used so far; None where it has no meter."""
        return None

    @property
    def num_programs(self) -> int:
        """Programs that were compiled so far: one more while the clock counts spoils its seconds."""
        return 0

    @property
    def reference(self) -> Target | None:
        """The loaded target, on which a verdict can compute both sides of a first difference again.

        None where the weights are out of reach: a difference is then `unexplained`.
        """
        return None
