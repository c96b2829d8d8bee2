"""Another engine as a rung: timed beside our loop, over the same weights, in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from harness.config import configurable
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Generation, Request
from harness.decoding.faults import MethodError
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.engines.engine import Note, Workload
from harness.engines.faults import EngineFault
from harness.engines.servers.launched import LaunchedEngine
from harness.engines.servers.served import ServedArm
from harness.engines.transformers_generate import Rung
from harness.target.spec import TargetSpec


@configurable
class EngineRung(Rung):
    """An engine that is started here, as its users run it; it is stopped while anybody else is measured."""

    in_process: ClassVar[bool] = False
    # The base has one name per class, and here every rung has its own.
    name: str  # type: ignore[misc]
    engine: LaunchedEngine
    settings: dict[str, Any] = Field(default_factory=dict)
    """What it drafts with, as `serve.ENGINE` of a method; empty: nothing."""
    widest: int = Field(default=1, ge=1)
    """The most tokens of one of its forwards."""

    @property
    @override
    def width(self) -> int:
        return self.widest

    @property
    def arm(self) -> ServedArm:
        """The only arm of its engine."""
        return ServedArm(name=self.name, settings=self.settings)

    @override
    def bind(self, target: TargetSpec, note: Note) -> None:
        self._arm = self.arm
        self.engine.load(target, {self.name: self._arm}, note)
        room = self.engine.outline.max_context
        self.engine.prepare(Workload(batch_size=1, timed=True, longest_sequence=lambda: room), note)

    @override
    def card(self) -> dict[str, Any]:
        return self._arm.card()

    @override
    def begin_run(self, logs: Path | None) -> None:
        self.engine.begin_run(logs)
        self.engine.rest()

    @override
    def generate(self, engine: DecodingLoop, request: Request, params: DecodingParams) -> Generation:
        try:
            made = self.engine.generate([request], self._arm, params, Coupled())[0]
        except EngineFault as fault:
            # The other rungs and the arms continue.
            raise MethodError(fault) from fault
        finally:
            self.engine.rest()
        return Generation(
            output_ids=made.output_ids,
            stop=made.stop,
            total_ns=made.total_ns if engine.timed else 0,
            latency_ns=made.latency_ns if engine.timed else 0,
        )

    @override
    def close(self) -> None:
        self.engine.close()
