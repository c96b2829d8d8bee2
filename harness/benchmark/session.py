"""A process's engine and prompts, which all its runs share."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.benchmark.cost_tables import known_costs
from harness.benchmark.plan import Plan
from harness.benchmark.progress import Scoreboard
from harness.config import ConfigError
from harness.costs.table import CostTable
from harness.drafting.drafter import Drafter
from harness.engines.engine import Workload
from harness.system.console import Console
from harness.system.secrets import redact_values
from harness.target.chat_template import render
from harness.tasks.conversation import Message
from harness.tasks.overlap import Fingerprints


class Session:
    """A process's engine and prompts, ready to be measured."""

    def __init__(self, plan: Plan, console: Console) -> None:
        """Set everything up, in this order.

        1. What is read from files and takes seconds: a trace of the acceptor, the prompts.
        2. The engine loads the target and introduces the arms to it. From here on prompts can be rendered.
        3. The engine prepares for this workload: it allocates, times and compiles.

        Raises:
            ConfigError: weights, prompts, a trace or an arm that does not fit; nothing has been measured.
        """
        self.plan, self.console, self.engine = plan, console, plan.engine
        self.board = Scoreboard()
        """What all runs of this process have come to so far."""
        self._rendered: dict[tuple[Message, ...], array[int]] = {}
        plan.acceptor.load()
        self.conversations = plan.task.load()
        for number, one in enumerate(self.conversations, 1):
            # A block is found again by its name, which is stored without secrets.
            if redact_values(one.id) != one.id:
                raise ConfigError(
                    f"task: the id of conversation {number} holds what looks like a secret, and ids are"
                    " stored; give it another one"
                )
        num_own = plan.measure.num_warmup
        own = plan.task.warmup()[:num_own] if num_own else []
        self.warmup = plan.scenario.warmup(own, self.conversations) if num_own else []
        self.model = self.engine.load(plan.target, plan.arms, console.note)
        self.cost_table = self._known_costs()
        """The table that arms weigh costs by; None where none does, or the engine measures them itself."""
        workload = Workload(
            batch_size=plan.measure.batch_size,
            timed=plan.measure.timed,
            longest_sequence=self._longest_sequence,
            costs=self.cost_table,
        )
        self.engine.prepare(workload, console.note)
        self._examined = False

    def _known_costs(self) -> CostTable | None:
        plan = self.plan
        if not any(isinstance(arm, Drafter) and arm.weighs_costs for arm in plan.arms.values()):
            return None
        device = plan.engine.device_facts(plan.target)
        return known_costs(
            plan.results,
            plan.target.name,
            self.model.card,
            device,
            plan.measure.batch_size,
            self.console.note,
        )

    def _longest_sequence(self) -> int:
        """Tokens of the longest sequence if every answer reaches the cap."""
        cap = max(params.max_new_tokens for params in self.plan.decodings.values())
        scenario, every = self.plan.scenario, (*self.conversations, *self.warmup)
        return max((scenario.longest_sequence(one, self.render, cap) for one in every), default=0)

    def examine(self, prompts: Sequence[Sequence[int]]) -> None:
        """Have the arms look at some prompts [token ids], once per process.

        Raises:
            ConfigError: an arm finds that it does not fit the target.
        """
        if not self._examined:
            self.engine.examine(prompts)
            for name, count in self.contaminated.items():
                self.console.warn(
                    f"{name}: {count} of {len(self.conversations)} prompts share 13 words with prompts that"
                    " its head was trained on; its rows are marked as contaminated"
                )
            self._examined = True

    def cards(self) -> dict[str, dict[str, Any]]:
        """What the arms have loaded, by arm; nothing for an arm that loads nothing."""
        return {name: card for name, method in self.plan.arms.items() if (card := method.card())}

    @cached_property
    def contaminated(self) -> dict[str, int]:
        """Conversations that share 13 consecutive words with a prompt that the arm was trained on, by arm."""
        found = dict[str, int]()
        known = dict[Path, Fingerprints]()
        for name, method in self.plan.arms.items():
            for file in method.training_prompts:
                if file not in known:
                    known[file] = Fingerprints.load(file)
                count = sum(known[file].share(one.turns) for one in self.conversations)
                found[name] = max(found.get(name, 0), count)
        return {name: count for name, count in found.items() if count}

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Prompt ids of a chat; rendered once, so that all arms are asked the same."""
        chat = tuple(messages)
        if chat not in self._rendered:
            ids = render(self.model.tokenizer, messages, self.plan.target.chat)
            self._rendered[chat] = array("q", ids)
        return self._rendered[chat].tolist()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer."""
        text: str = self.model.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
