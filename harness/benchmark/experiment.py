"""Measures one cell (target x task x decoding, all arms interleaved) into one run folder."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import torch

from harness.benchmark.lossless_verdict import Referee
from harness.benchmark.manifest import ManifestMaker
from harness.benchmark.measure import Measure
from harness.benchmark.noise import again
from harness.benchmark.noise.again import ProcessStopped, begin_block
from harness.benchmark.noise.watch import watch_of
from harness.benchmark.plan import make_cell
from harness.benchmark.progress import RunProgress
from harness.benchmark.quality.judge import QualityJudge
from harness.benchmark.sample_trees import MAX_CONVERSATIONS, exhibit, piece_reader
from harness.benchmark.scenarios.scenario import Scenario
from harness.benchmark.scenarios.turn_runner import Answers, Block, Call, Pass, TurnResult, TurnRunner
from harness.benchmark.schedule import Schedule, block_name
from harness.benchmark.session import Session
from harness.config import ConfigError
from harness.decoding.faults import DecodingFault
from harness.decoding.sampling import DecodingParams
from harness.engines.faults import EngineFault, incomplete
from harness.store.journal import RunWriter
from harness.store.records import (
    BASELINE,
    Cell,
    Failure,
    GenerationRecord,
    Probe,
    RunManifest,
    Verdict,
)
from harness.store.run_store import ResultStore
from harness.system.load.counters import counting_stops
from harness.system.progress import waiting
from harness.tasks.conversation import Conversation

LOGS = "logs"
"""The folder below that of a run for what programs outside this process say."""
_WARMUP_TOKENS = 16
_NUM_EXAMINED = 3
"""Prompts that the arms look at before anything is measured."""


class Experiment:
    """One run: everything that happens for one decoding."""

    def __init__(self, session: Session, params: DecodingParams) -> None:
        """Render the first prompt of every conversation and have the arms look at some of them.

        Raises:
            ConfigError: a prompt leaves no room for an answer, or an arm does not fit the target.
        """
        self.session, self.plan, self.params = session, session.plan, params
        self.console, self.scenario = session.console, session.plan.scenario
        self.progress = RunProgress(session.console, session.board)
        self.runner = TurnRunner(
            engine=session.engine,
            model=session.model,
            params=params,
            acceptor=self.plan.acceptor,
            render=session.render,
            decode=session.decode,
        )
        self.players = self.plan.players(params)
        self.schedule = Schedule(plan=self.plan, params=params, conversations=session.conversations)
        self.referee = Referee(session.engine, params, self.plan.acceptor)
        self.quality = QualityJudge(session, params)
        self._piece = piece_reader(session.model.tokenizer)
        prompts = {one.id: self._first_prompt(one) for one in session.conversations}
        self._manifests = ManifestMaker(
            session=session, params=params, prompts=prompts, scenario=self.scenario.card(session.model)
        )
        self._where = "start"
        """What is being done, for the record of a failure."""
        self._failed: dict[str, Failure] = {}
        """Players that have failed by their own fault and are left out from then on, by name."""
        session.examine(list(prompts.values())[:_NUM_EXAMINED])

    def _first_prompt(self, conversation: Conversation) -> list[int]:
        prompt = self.runner.chat_prompt(conversation, [])
        self.runner.check_room(Call(conversation=conversation, prompt=prompt))
        return prompt

    def manifest(self, store: ResultStore) -> RunManifest:
        """What will be measured and where; its id is the run's."""
        return self._manifests.make(store)

    @property
    def cell(self) -> Cell:
        """What is measured, in the words of the tables."""
        return make_cell(self.plan, self.params)

    def run(self, store: ResultStore) -> Path:
        """Measure what is not measured yet; the run's folder.

        Raises:
            ConfigError: a prompt does not fit. This and any other exception (also out of memory and Ctrl-C)
                is recorded in the run before it is raised again.
            ProcessStopped: the process was stopped whenever one of the blocks was measured.
        """
        folder = store.root / (manifest := self.manifest(store)).run_id
        if store.is_finished(manifest.run_id):
            self.console.note(f"done already: {folder} (measure again: replicate=next)")
            return folder
        with store.open_run(manifest) as run, counting_stops():
            self._failed = {failed.arm: failed for failed in run.failures if failed.arm}
            try:
                self._measure_all(run)
                run.finish()
            except BaseException as error:
                run.write_failure(failure(error, self._where))
                raise
            finally:
                self.progress.stop()
        return run.folder

    def _measure_all(self, run: RunWriter) -> None:
        blocks = [one for one in self.schedule.blocks() if not run.is_measured(block_name(one))]
        if self.plan.measure.timed and (probe := self.session.engine.probe(self.plan.measure.bandwidth_gib)):
            run.write_probe(Probe(**asdict(probe)))
        self.session.engine.begin_run(run.folder / LOGS)
        pace = self._warm_up()
        self._num_programs = self.session.engine.num_programs
        self._watch = watch_of(self.plan, self.console)
        most_seconds = self.schedule.most_seconds(blocks, pace)
        self.progress.plan(self.schedule.num_generations(blocks), len(blocks), most_seconds)
        self.progress.start(run.manifest)
        lost = [block_name(one) for one in blocks if not self._measured(run, one)]
        self._measure_again(run)
        if lost:
            raise incomplete(lost, len(blocks))

    def _measured(self, run: RunWriter, block: Block) -> bool:
        """Measure a block; False where an engine failed that may answer the next one. That is recorded."""
        try:
            self._measure(run, block)
        except EngineFault as fault:
            if fault.fatal:
                raise
            run.write_failure(failure(fault, self._where))
            self.console.error(f"{self._where}: {fault}; the other blocks continue")
            return False
        return True

    def _measure_again(self, run: RunWriter) -> None:
        blocks = {block_name(one): one for one in self.schedule.blocks()}
        # An arm with a memory of the whole run would find the answers of the first measurement in it.
        quiet = "off" if any(one.remembers_run for one in self.players) else self.plan.measure.quiet
        for name in again.to_measure(list(blocks), run.loads, quiet, self.console):
            self.session.engine.begin_run()
            self._measure(run, blocks[name])

    def _warm_up(self) -> dict[str, float]:
        """Run every player on the scenario's warm-up; seconds per token of each, by name."""
        runner = self.runner
        if self.scenario.warm_up == "ours":
            short = min(self.params.max_new_tokens, _WARMUP_TOKENS)
            runner = replace(runner, params=replace(self.params, max_new_tokens=short))
        seconds: dict[str, float] = {}
        num_tokens: dict[str, int] = {}
        prompts = self.session.warmup
        with waiting("warm-up", total=len(prompts) * len(self.players), timed=True) as wait:
            for conversation, player in product(prompts, self.players):
                self._where = f"warm-up: {player.name}, {conversation.id}"
                wait.step(player.name)
                begin = time.monotonic()
                block = _copies(conversation, self.plan.measure.batch_size)
                results = self._play(runner, Pass(player=player), block)
                seconds[player.name] = seconds.get(player.name, 0.0) + time.monotonic() - begin
                made = sum(len(one.generation.output_ids) for one in results)
                num_tokens[player.name] = num_tokens.get(player.name, 0) + made
                wait.advance()
        return {name: seconds[name] / max(num_tokens[name], 1) for name in seconds}

    def _measure(self, run: RunWriter, block: Block) -> None:
        """All passes over a block, their verdicts and the null; then the records, as one unit."""
        name, frozen = block_name(block), None
        if self.plan.task.history == "frozen":
            self._where = f"{self.players[0].name}, {name}"
            frozen = self.scenario.history(self.runner, self.players[0], block)
        results: list[TurnResult] = []
        if self._watch:
            self._watch.begin(name)
        for one_pass in self.schedule.passes(block):
            self._where = f"{one_pass.player.name}, {name}"
            made = self._play(self.runner, one_pass, block, frozen)
            results += made
            if self._watch:
                self._watch.after_pass()
            for one in made:
                self.progress.record(self._record(one, None, block))
        results = [one for one in results if one.player.name not in self._failed]
        load = self._watch.end(name) if self._watch else None
        for cut in cut_short(block, results, self.scenario):
            room = self.session.model.max_context
            self.console.note(f"{cut}: the next prompt leaves no room in target.max_context={room}")
        _refuse_compilation(self.session.engine.num_programs - self._num_programs, block, self.plan.measure)
        begin_block(run, name, load, self.plan.measure.quiet, self.console)
        written = {failed.arm for failed in run.failures}
        for arm, failed in self._failed.items():
            if arm not in written:
                run.write_failure(failed)
        reference = {one.key: one for one in results if one.player.name == BASELINE and one.by.repeat == 0}
        for one in results:
            self._where = f"verdict on {one.player.name}, {name}"
            run.write_record(self._record(one, self.referee.verdict(one, reference.get(one.key)), block))
        replayed = {one.id for one in self.session.conversations[: self.plan.measure.num_null]}
        for null in self.referee.nulls(results, reference, replayed):
            run.write_null(null)
        self._exhibit(run, results)
        run.finish_block(name)
        self.progress.finish_block(name)

    def _play(
        self, runner: TurnRunner, one_pass: Pass, block: Block, frozen: Answers | None = None
    ) -> list[TurnResult]:
        """The results of a pass; none where the player has failed by its own fault, now or before.

        The other players continue, unless it is vanilla that failed: every number is relative to it.
        """
        name = one_pass.player.name
        if name in self._failed:
            return []
        try:
            return self.scenario.play(runner, one_pass, block, frozen)
        except DecodingFault as error:
            if name == BASELINE:
                raise
            self._failed[name] = failure(error, self._where, name)
            self.console.error(f"{self._where}: {self._failed[name].message}; the other arms continue")
            return []

    def _record(self, one: TurnResult, verdict: Verdict | None, block: Block) -> GenerationRecord:
        size, timed = min(len(block), self.plan.measure.batch_size), self.plan.measure.timed
        return one.record(verdict, size, timed, self.quality.judge(one) if verdict else {})

    def _exhibit(self, run: RunWriter, results: list[TurnResult]) -> None:
        """Keep the trees and texts of the first conversations, so that people can look at them."""
        chosen = {conversation.id for conversation in self.session.conversations[:MAX_CONVERSATIONS]}
        for one in results:
            first = one.call.sample == one.by.repeat == 0
            if first and one.call.conversation.id in chosen and one.player.kind != "rung":
                run.write_exhibit(exhibit(one, self._piece, self.session.decode, self.session.model.paint))


def _refuse_compilation(num_new: int, block: Block, measure: Measure) -> None:
    """Raise ConfigError where programs were compiled while the clock counted."""
    if num_new and measure.timed:
        raise ConfigError(
            f"target.compile=true: {num_new} programs were compiled while {block_name(block)} was timed,"
            f" which spoils its seconds; type measure.num_warmup={measure.num_warmup + 2}, or"
            " target.compile=false"
        )


def _copies(conversation: Conversation, number: int) -> Block:
    """One copy per sequence of a batch, so that the warm-up runs at full batch size."""
    return tuple(replace(conversation, id=f"{conversation.id} {place}") for place in range(number))


def cut_short(block: Block, results: Sequence[TurnResult], scenario: Scenario) -> Iterator[str]:
    """The conversations that vanilla could not finish for want of context, one text each."""
    first = [
        one.call.conversation.id
        for one in results
        if one.player.name == BASELINE and one.by.seed == one.by.repeat == 0
    ]
    for conversation in block:
        num_played, num_calls = first.count(conversation.id), scenario.num_calls(conversation)
        if num_played < num_calls:
            yield f"conversation {conversation.id} ends after {num_played} of {num_calls} turns"


_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""What torch writes into a plain RuntimeError where a processor's memory ends."""


def failure(error: BaseException, where: str, arm: str = "") -> Failure:
    """The record of what stopped a run, or an arm of it, with the setting to change where there is one."""
    if isinstance(error, DecodingFault):
        # Where no other arm is named it was vanilla's, which stops the run.
        return Failure(error.kind, where, str(error), arm or BASELINE)
    if isinstance(error, EngineFault):
        return Failure(error.kind, where, str(error))
    if isinstance(error, KeyboardInterrupt):
        why = str(error) or "stopped by the user"
        return Failure("interrupted", where, f"{why}; the same command resumes here")
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _NO_MEMORY in str(error):
        remedy = "turn down measure.batch_size, max_new_tokens, target.dtype or the draft's size"
        return Failure("out-of-memory", where, f"{error}; {remedy}")
    if isinstance(error, ConfigError):
        return Failure("config", where, str(error))
    if isinstance(error, ProcessStopped):
        return Failure("stopped", where, str(error))
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return Failure("error", where, f"{type(error).__name__}: {error} ({place})")
