"""Session: a process's target, prompts and drafters, which all its runs share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from harness.benchmark.plan import Plan
from harness.benchmark.scenarios.multi_turn import Player
from harness.config import ConfigError
from harness.profiling.step_timing import StepTimings, time_steps, widths_to_time
from harness.system.console import Console
from harness.system.processes import agreed, expect_processes
from harness.target.chat_template import render
from harness.target.model import Target
from harness.target.spec import LoadedWeights
from harness.tasks.conversation import Message


class Session:
    """A process's target and prompts, which all its runs share."""

    def __init__(self, plan: Plan, console: Console) -> None:
        """Load everything and introduce the drafters to the target.

        Raises:
            ConfigError: weights, prompts, a trace or a drafter that do not fit; nothing is measured.
        """
        self.plan, self.console = plan, console
        expect_processes(plan.target.tensor_parallel)
        plan.acceptor.load()
        self.conversations = plan.task.load()
        self.warmup = plan.task.warmup() if plan.measure.num_warmup else []
        self.weights: LoadedWeights = plan.target.load(console.note)
        spec = plan.target
        self.target = Target(self.weights.model, spec.attention, spec.linear, spec.cache, spec.compile)
        self.players = [Player(name=name, drafter=drafter) for name, drafter in plan.arms.items()]
        for player in self.players:
            assert player.drafter is not None
            with _naming(player.name):
                player.drafter.bind(self.target)
        # One program serves all arms: it records what any of them asks for.
        self.target.set_taps(
            [tap for player in self.players if player.drafter for tap in player.drafter.taps]
        )
        self._checked = False
        self.rungs = [Player(name=rung.name, rung=rung) for rung in plan.rungs.values()]
        self.step_timings: StepTimings | None = None
        if self.target.steps.by_shape:
            self.target.reserve(self._most_tokens())
        if plan.measure.timed:
            console.note(f"timing the target's forward by width: {', '.join(self.target.steps.kinds)}")
            # Steps are chosen and drafts padded by it, in all processes alike.
            widths = widths_to_time(self.target, plan.arms.values())
            self.step_timings = agreed(time_steps(self.target, plan.measure.batch_size, widths))
            self.target.steps.choose(self.step_timings.steps, plan.measure.batch_size)
            for drafter in plan.arms.values():
                drafter.warm_up(plan.measure.batch_size)

    def _most_tokens(self) -> int:
        """Of a sequence with all its turns, every answer as long as it may be."""
        cap = max(params.max_new_tokens for params in self.plan.decodings.values())
        longest = 0
        for conversation in (*self.conversations, *self.warmup):
            asked = [Message(role="user", content=turn) for turn in conversation.turns]
            prompt = len(conversation.input_ids or self.render(asked))
            longest = max(longest, prompt + conversation.num_turns * cap)
        return min(longest, self.weights.max_context)

    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Have the drafters look at some prompts, once.

        Raises:
            ConfigError: a drafter finds that it does not fit the target.
        """
        if self._checked:
            return
        for name, drafter in self.plan.arms.items():
            with _naming(name):
                drafter.check(prompts)
        self._checked = True

    def drafter_bytes(self) -> dict[str, int]:
        """Memory of the drafters' own models, by arm, where they have one."""
        return {name: drafter.num_bytes for name, drafter in self.plan.arms.items() if drafter.num_bytes}

    def cards(self) -> dict[str, dict[str, Any]]:
        """What the drafters have loaded, by arm."""
        return {name: card for name, drafter in self.plan.arms.items() if (card := drafter.card())}

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Prompt ids of a chat."""
        return render(self.weights.tokenizer, messages, self.plan.target.chat)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer."""
        text: str = self.weights.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


@contextmanager
def _naming(arm: str) -> Iterator[None]:
    """A drafter's complaint begins with the name of its field; put the arm's before it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"methods.{arm}.{error}") from error
