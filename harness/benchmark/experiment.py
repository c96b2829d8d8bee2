"""Experiment: measures one cell (target x task x decoding, all arms interleaved) into one run folder."""

from __future__ import annotations

import hashlib
import json
import random
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from harness.benchmark.plan import Plan
from harness.benchmark.run_progress import RunProgress
from harness.benchmark.sample_trees import MAX_CONVERSATIONS, exhibit, piece_reader
from harness.benchmark.scenarios.multi_turn import Block, Played, Player, Stage
from harness.benchmark.session import Session
from harness.benchmark.verdict import Judge
from harness.config import ConfigError
from harness.decoding.acceptance import Acceptor
from harness.decoding.loop import LocalEngine
from harness.decoding.sampling import DecodingParams
from harness.profiling.step_timing import cheapest_widths
from harness.store import identity
from harness.store.records import BASELINE, Cell, Failure, GenerationRecord, Probe, RunManifest, Verdict
from harness.store.run_store import OpenRun, ResultStore
from harness.system import naming, provenance
from harness.system.clock import lap_cost_ns
from harness.system.probes import read_bandwidth
from harness.target.chat_template import template_hash
from harness.tasks.conversation import Conversation

_WARMUP_TOKENS = 32
_NUM_CHECKED = 3
"""Prompts that drafters look at before anything is measured."""


@dataclass(frozen=True)
class Trial:
    """One pass of a player over a block."""

    player: Player
    sample: int
    repeat: int


class Experiment:
    """One run: everything that happens for one decoding."""

    def __init__(self, session: Session, params: DecodingParams) -> None:
        self.session, self.plan, self.params = session, session.plan, params
        self.acceptor: Acceptor = self.plan.acceptor
        self.console = session.console
        self.progress = RunProgress(session.console)
        weights, measure = session.weights, self.plan.measure
        engine = LocalEngine(
            session.target,
            weights.end_token_ids,
            weights.max_context,
            timed=measure.timed,
            widths=cheapest_widths(session.step_timings.verify_ns) if session.step_timings else (),
            batch_size=measure.batch_size,
        )
        self.stage = Stage(
            engine=engine,
            params=params,
            acceptor=self.acceptor,
            render=session.render,
            decode=session.decode,
        )
        self.judge = Judge(session.target, params)
        self._piece = piece_reader(weights.tokenizer)
        self.rungs = session.rungs if measure.rung_repeats_at(params.greedy) else []
        self.prompts = {
            conversation.id: self.stage.prompt(conversation, []) for conversation in session.conversations
        }
        self._where = "start"
        """What is being done, for the record of a failure."""
        session.check(list(self.prompts.values())[:_NUM_CHECKED])

    def manifest(self, store: ResultStore) -> RunManifest:
        """What will be measured and where; its id is the run's."""
        device = provenance.device_facts(self.session.target.device)
        cards, weights, prompts = self.session.cards(), self.session.weights, self._prompt_set
        asked = self.plan.run_config(self.params)
        revision = {name: weights.card.get(name) for name in ("source", "revision", "fingerprint")}

        def run_id(replicate: int) -> str:
            # Other prompts in the same file or another head in the same folder make another measurement.
            config = {**asked, "cards": cards, "prompts": prompts, "weights": revision}
            return identity.run_id(self.cell, identity.identity(config, replicate, device))

        wanted = self.plan.replicate
        replicate = store.next_replicate(run_id) if wanted == "next" else wanted
        return RunManifest(
            run_id=run_id(replicate),
            cell=self.cell,
            arms={
                name: {
                    **self.plan.config["methods"][name],
                    "scope": drafter.knowledge,
                    **({"card": cards[name]} if name in cards else {}),
                }
                for name, drafter in self.plan.arms.items()
            },
            rungs=[rung.name for rung in self.rungs],
            config=naming.redact(asked),
            overrides=naming.redact(self.plan.overrides),
            target={**weights.card, "linear": self.session.target.linear},
            prompts=prompts,
            provenance={
                "device": device,
                "git": provenance.git_state(),
                "packages": provenance.packages(),
                "source_hash": provenance.source_hash(),
            },
            replicate=replicate,
            created=naming.now(),
        )

    @cached_property
    def _prompt_set(self) -> dict[str, Any]:
        """What the target is asked and where it stops, for the manifest."""
        weights = self.session.weights
        return {
            "num_conversations": len(self.prompts),
            "hash": hashlib.sha256(json.dumps(list(self.prompts.items())).encode()).hexdigest()[:16],
            "template_hash": template_hash(weights.tokenizer, self.plan.target.chat),
            "end_token_ids": sorted(weights.end_token_ids),
            "task": self.plan.task.card(),
        }

    @property
    def cell(self) -> Cell:
        """What is measured, in the words of the tables."""
        return make_cell(self.plan, self.params)

    def run(self, store: ResultStore) -> Path:
        """Measure what is not measured yet; the run's folder.

        Raises:
            ConfigError: a prompt does not fit. Any other exception (also out-of-memory and Ctrl-C) is
            written into the run before it goes on its way.
        """
        manifest = self.manifest(store)
        if store.is_finished(manifest.run_id):
            folder = store.root / manifest.run_id
            self.console.note(f"done already: {folder} (measure again: replicate=next)")
            return folder
        with store.open_run(manifest) as run:
            try:
                todo = [block for block in self._blocks() if _name(block) not in run.finished_blocks]
                if self.plan.measure.timed:
                    self._probe(run)
                pace = self._warm_up()
                self._num_programs = self.session.target.steps.num_programs
                self.progress.plan(self._num_generations(todo), self._most_seconds(todo, pace))
                self.progress.start(manifest)
                for block in todo:
                    self._measure(run, block)
                run.finish()
            except BaseException as error:
                run.write_failure(failure(error, self._where))
                raise
            finally:
                self.progress.stop()
        return run.folder

    def _blocks(self) -> Iterator[Block]:
        size = self.plan.measure.block_size
        conversations = self.session.conversations
        for start in range(0, len(conversations), size):
            yield tuple(conversations[start : start + size])

    def _probe(self, run: OpenRun) -> None:
        device = self.session.target.device
        bandwidth = read_bandwidth(device, self.plan.measure.bandwidth_gib)
        found = self.session.step_timings
        assert found is not None
        verify_ns = [round(spent) if isfinite(spent) else None for spent in found.verify_ns]
        memory = {**self.session.target.memory(), **self.session.drafter_bytes()}
        run.write_probe(Probe(bandwidth, lap_cost_ns(device), verify_ns, found.steps, memory))

    def _warm_up(self) -> dict[str, float]:
        """Run every player on prompts outside the test set; seconds a token of each."""
        short = replace(self.params, max_new_tokens=min(self.params.max_new_tokens, _WARMUP_TOKENS))
        stage = replace(self.stage, params=short)
        spent: dict[str, float] = {}
        num_tokens: dict[str, int] = {}
        for conversation in self.session.warmup[: self.plan.measure.num_warmup]:
            for player in (*self.session.players, *self.rungs):
                self._where = f"warm-up: {player.name}, {conversation.id}"
                self.console.note(self._where)
                begin = time.monotonic()
                played = stage.play(player, self._copies(conversation))
                spent[player.name] = spent.get(player.name, 0.0) + time.monotonic() - begin
                made = sum(len(one.generation.output_ids) for one in played)
                num_tokens[player.name] = num_tokens.get(player.name, 0) + made
        return {name: spent[name] / max(num_tokens[name], 1) for name in spent}

    def _most_seconds(self, blocks: list[Block], pace: dict[str, float]) -> float | None:
        """What the blocks take if every answer reaches the cap; None where nothing was warmed up."""
        if not pace:
            return None
        num_turns = [sum(one.num_turns for one in block) for block in blocks]
        a_token = [sum(pace[trial.player.name] for trial in self._trials(block)) for block in blocks]
        cap = self.params.max_new_tokens
        return cap * sum(turns * seconds for turns, seconds in zip(num_turns, a_token, strict=True))

    def _copies(self, conversation: Conversation) -> Block:
        """As many of it as run at the same time, so that a full batch has been seen."""
        numbers = range(self.plan.measure.batch_size)
        return tuple(replace(conversation, id=f"{conversation.id} {number}") for number in numbers)

    def _trials(self, block: Block) -> list[Trial]:
        """Every pass over a block, in an order drawn for that block."""
        repeats = self.plan.repeats(self.params)
        trials = [
            Trial(player, sample, repeat)
            for player in (*self.session.players, *self.rungs)
            for sample in range(len(self.params.seeds))
            for repeat in range(repeats[player.name])
        ]
        random.Random(f"{self.plan.measure.order_seed}:{_name(block)}").shuffle(trials)
        return trials

    def _num_generations(self, blocks: list[Block]) -> int:
        turns = (sum(one.num_turns for one in block) for block in blocks)
        return sum(len(self._trials(block)) * num for block, num in zip(blocks, turns, strict=True))

    def _measure(self, run: OpenRun, block: Block) -> None:
        """All passes over a block, their verdicts and the null; then the records, as one unit."""
        frozen = None
        if self.plan.task.history == "frozen" and any(one.num_turns > 1 for one in block):
            vanilla = self.session.players[0]
            self._where = f"{vanilla.name}, {_name(block)}"
            frozen = self.stage.answers(vanilla, block, range(len(self.params.seeds)))
        played: list[Played] = []
        for order, trial in enumerate(self._trials(block)):
            self._where = f"{trial.player.name}, {_name(block)}"
            one_pass = self.stage.play(
                trial.player,
                block,
                sample=trial.sample,
                repeat=trial.repeat,
                order=order,
                frozen=frozen,
            )
            played += one_pass
            for one in one_pass:
                self.progress.record(self._record(one, None, block))
        self._refuse_compilation(block)
        run.begin_block(_name(block))
        reference = {one.place: one for one in played if one.player.name == BASELINE and one.repeat == 0}
        for one in played:
            self._where = f"verdict on {one.player.name}, {_name(block)}"
            verdict = self._verdict(one, reference[one.place])
            run.write_record(self._record(one, verdict, block))
        self._null(run, played, reference)
        self._exhibit(run, played)
        run.finish_block(_name(block))

    def _refuse_compilation(self, block: Block) -> None:
        num_new = self.session.target.steps.num_programs - self._num_programs
        if num_new and self.plan.measure.timed:
            raise ConfigError(
                f"target.compile=true: {num_new} programs were compiled while {_name(block)} was timed, which"
                f" spoils its seconds; type measure.num_warmup={self.plan.measure.num_warmup + 2}, or"
                " target.compile=false"
            )

    def _record(self, one: Played, verdict: Verdict | None, block: Block) -> GenerationRecord:
        measure = self.plan.measure
        return one.record(verdict, min(len(block), measure.batch_size), measure.timed)

    def _verdict(self, one: Played, vanilla: Played) -> Verdict:
        # Vanilla drafts nothing, so no acceptor can change it.
        if not self.acceptor.lossless and one.player.drafter and one.player.name != BASELINE:
            return Verdict("forced" if self.acceptor.forced else "lossy")
        same_prompt = list(one.request.prompt) == list(vanilla.request.prompt)
        # Whatever the acceptor, vanilla draws again what it drew: its repeats have the same random stream.
        coupled = self.acceptor.coupled or self.params.greedy or one.player.name == BASELINE
        if not same_prompt or not coupled:
            return Verdict("unpaired")
        width = one.player.rung.width if one.player.rung else 1
        return self.judge.compare(one.request, vanilla.generation, one.generation, width)

    def _exhibit(self, run: OpenRun, played: list[Played]) -> None:
        """Keep what people may want to look at, of the first conversations."""
        chosen = {conversation.id for conversation in self.session.conversations[:MAX_CONVERSATIONS]}
        for one in played:
            if one.conversation.id in chosen and one.player.drafter and one.sample == one.repeat == 0:
                run.write_exhibit(exhibit(one, self._piece, self.session.decode))

    def _null(self, run: OpenRun, played: list[Played], reference: dict[Any, Played]) -> None:
        """Replay vanilla's tokens at the widest verify shape of the block, for the first conversations."""
        widest = max((1 + draft.width for one in played for draft, _ in one.generation.drafts), default=1)
        limit = self.plan.measure.num_null
        chosen = {conversation.id for conversation in self.session.conversations[:limit]}
        for one in reference.values():
            if one.conversation.id in chosen and widest > 1:
                output = one.generation.output_ids
                run.write_null(self.judge.null(one.conversation.id, one.request, output, widest))


def _name(block: Block) -> str:
    """What the journal calls a block."""
    return ", ".join(conversation.id for conversation in block)


def make_cell(plan: Plan, params: DecodingParams) -> Cell:
    """The cell that `plan` measures with `params`."""
    return Cell(
        target=plan.target.name,
        task=plan.task.name,
        decoding=params.name,
        temperature=params.temperature,
        batch_size=plan.measure.batch_size,
        profile=plan.measure.profile,
        baseline=plan.target.baseline,
        acceptor=plan.acceptor.name,
    )


def failure(error: BaseException, where: str) -> Failure:
    """What stopped a run, in words that say what to turn."""
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted", where, "stopped by the user; the same command goes on from here")
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        remedy = "turn down measure.batch_size, max_new_tokens, target.dtype or the draft's size"
        return Failure("out-of-memory", where, f"{error}; {remedy}")
    if isinstance(error, ConfigError):
        return Failure("config", where, str(error))
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return Failure("error", where, f"{type(error).__name__}: {error} ({place})")
