"""The engine of this process: our loop over a target that is loaded here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from typing_extensions import override

from harness.config import ConfigError, configurable, naming
from harness.decoding.acceptance import Acceptor
from harness.decoding.batch import Generation, Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import Drafter
from harness.engines.engine import Engine, MachineProbe, Method, Note, ServedModel, Workload
from harness.engines.transformers_generate import Rung, not_applied
from harness.profiling.clocked_costs import ClockedCosts
from harness.profiling.step_memory import StepMemory
from harness.profiling.step_timing import StepTimings, cheapest_widths, time_steps, widths_to_time
from harness.system import probes, provenance
from harness.system.clock import lap_cost_ns
from harness.system.machine_lock import units_of
from harness.system.processes import agreed, expect_processes
from harness.system.progress import waiting
from harness.target.model import Target
from harness.target.spec import LoadedWeights, TargetSpec

Loop = TypeVar("Loop", bound=DecodingLoop)


@configurable
class Local(Engine):
    """Decodes with drafters and rungs on a target of this process; knows every round."""

    name: ClassVar[str] = "local"
    in_process: ClassVar[bool] = True
    tells_rounds: ClassVar[bool] = True
    forces: ClassVar[bool] = True
    coupled: ClassVar[bool] = True

    @override
    def refuse(self, arms: Mapping[str, Method], rungs: Mapping[str, Method], acceptor: Acceptor) -> None:
        self._rungs = [rung for rung in rungs.values() if isinstance(rung, Rung)]
        self._acceptor = acceptor
        for group, methods, base in (("methods", arms, Drafter), ("rungs", rungs, Rung)):
            for name, method in methods.items():
                if not isinstance(method, base):
                    raise ConfigError(
                        f"{group}.{name}._target_: {type(method).__name__} is no {base.__name__}, and"
                        f" engine=local runs nothing else; leave it out with ~{group}.{name}, or choose the"
                        " engine that it was written for with engine=NAME"
                    )

    @override
    def device_facts(self, target: TargetSpec) -> dict[str, Any]:
        return provenance.device_facts(target.resolved_device())

    @override
    def units(self, target: TargetSpec) -> list[str]:
        return units_of(target.resolved_device(), target.device_map is not None)

    @override
    def baseline(self, target: TargetSpec) -> str:
        return target.baseline

    @override
    def load(self, target: TargetSpec, arms: Mapping[str, Method], note: Note) -> ServedModel:
        expect_processes(target.tensor_parallel)
        self._drafters = {name: arm for name, arm in arms.items() if isinstance(arm, Drafter)}
        self.weights: LoadedWeights = target.load(note)
        ignored = not_applied(self.weights.model)
        if ignored:
            asked = ", ".join(f"{name}={value}" for name, value in ignored.items())
            note(
                f"target {target.name}: its generation config asks for {asked}; no arm and no rung applies it"
            )
        self.target = self.weights.make(
            self.weights.model, target.attention, target.linear, target.cache, target.compile
        )
        for name, drafter in self._drafters.items():
            with naming(f"methods.{name}"):
                drafter.bind(self.target)
        for rung in self._rungs:
            rung.bind(target, note)
        self._acceptor.bind(self.target)
        # One program serves all arms: it records the hidden states that any of them asks for.
        taps = [tap for drafter in self._drafters.values() for tap in drafter.taps]
        self.target.set_taps([*taps, *self._acceptor.taps])
        return ServedModel(
            tokenizer=self.weights.tokenizer,
            end_token_ids=self.weights.end_token_ids,
            max_context=self.weights.max_context,
            vocab_size=self.target.vocab_size,
            paint=self.weights.paint,
            card={**self.weights.card, "linear": self.target.linear, "not_applied": ignored},
        )

    @override
    def prepare(self, workload: Workload, note: Note) -> None:
        """Reserve caches, time the target's steps, choose among them, tell the drafters what forwards cost,
        warm them up; in this order.

        Captured steps hold the addresses of the caches, so these are allocated first. What a drafter's
        forward costs, and what it compiles, depends on the steps that were chosen.
        """
        self._step_timings: StepTimings | None = None
        if self.target.steps.by_shape:
            self.target.reserve(min(workload.longest_sequence(), self.weights.max_context))
        weighing = [name for name, drafter in self._drafters.items() if drafter.weighs_costs]
        begin = time.perf_counter()
        costs = workload.costs
        if workload.timed or (weighing and costs is None):
            # All processes of a run must choose the same steps, pad drafts alike and weigh the same costs.
            widths = widths_to_time(self.target, self._drafters.values())
            memory = StepMemory(self.target, workload.batch_size, widths)
            timings = agreed(time_steps(self.target, workload.batch_size, widths, memory=memory))
            costs = costs or timings
            if workload.timed:
                self._step_timings = timings
                self.target.steps.choose(timings.steps, workload.batch_size)
        if costs is not None:
            # Behind the choice of steps, which decides what the drafters' forwards cost.
            clocked = ClockedCosts(target=costs, device=self.target.device)
            for drafter in self._drafters.values():
                drafter.use_costs(clocked, workload.batch_size)
        if weighing:
            note(f"costs for {', '.join(weighing)} were ready in {time.perf_counter() - begin:.1f} s")
        if workload.timed:
            self._warm_up(workload.batch_size)
        for remark in self.target.remarks:
            note(remark)
        self._workload = workload
        self._loop = self.loop(DecodingLoop)

    def loop(self, kind: type[Loop]) -> Loop:
        """A loop of this kind over the target, with the steps that `prepare` has chosen."""
        return kind(
            self.target,
            self.weights.end_token_ids,
            self.weights.max_context,
            timed=self._workload.timed,
            widths=cheapest_widths(self._step_timings.verify_ns) if self._step_timings else (),
            batch_size=self._workload.batch_size,
        )

    def _warm_up(self, batch_size: int) -> None:
        with waiting("compiling the drafters' steps", total=len(self._drafters)) as wait:
            for name, drafter in self._drafters.items():
                wait.step(name)
                drafter.warm_up(batch_size)
                wait.advance()

    @override
    def examine(self, prompts: Sequence[Sequence[int]]) -> None:
        for name, drafter in self._drafters.items():
            with naming(f"methods.{name}"):
                drafter.check(prompts)

    @override
    def begin_run(self, logs: Path | None = None) -> None:
        for drafter in self._drafters.values():
            drafter.new_call(keep_memory=False)
        for rung in self._rungs:
            rung.begin_run(logs)

    @override
    def close(self) -> None:
        for rung in self._rungs:
            rung.close()

    @override
    def generate(
        self,
        requests: Sequence[Request],
        method: Method,
        params: DecodingParams,
        acceptor: Acceptor,
        same_question: bool = False,
    ) -> list[Generation]:
        if isinstance(method, Rung):
            return [method.generate(self._loop, request, params) for request in requests]
        assert isinstance(method, Drafter), "`refuse` lets nothing else through"
        return self._loop.generate(requests, method, params, acceptor, same_question)

    @override
    def probe(self, bandwidth_gib: float | None) -> MachineProbe | None:
        if self._step_timings is None:
            return None
        device = self.target.device
        own = {name: drafter.num_bytes for name, drafter in self._drafters.items() if drafter.num_bytes}
        with waiting("measuring the bandwidth of the memory", usual_s=10, timed=True):
            read_bandwidth, lap_ns = probes.read_bandwidth(device, bandwidth_gib), lap_cost_ns(device)
        return MachineProbe(
            read_bandwidth=read_bandwidth,
            lap_ns=lap_ns,
            verify_ns=[round(spent) if isfinite(spent) else None for spent in self._step_timings.verify_ns],
            steps=self._step_timings.steps,
            memory={**self.target.memory(), **own},
        )

    @override
    def reset_peak(self) -> None:
        if self.target.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.target.device)

    @override
    def peak_memory_bytes(self) -> int:
        return probes.peak_memory_bytes(self.target.device)

    @override
    def energy_mj(self) -> int | None:
        return probes.energy_mj(self.target.device)

    @property
    @override
    def num_programs(self) -> int:
        return self.target.steps.num_programs

    @property
    @override
    def reference(self) -> Target:
        return self.target
