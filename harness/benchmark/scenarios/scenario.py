"""The base of all scenarios: how the turns of a question are played."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from harness.benchmark.scenarios.turn_runner import Answers, Block, Pass, Player, TurnResult, TurnRunner
from harness.config import configurable
from harness.engines.engine import ServedModel
from harness.tasks.conversation import Conversation, Message

_NUM_PAPER_WARMUPS = 3
_WARMUP_PREFIX = "WARMUPFLAG "


@configurable
class Scenario(ABC):
    """Base of all scenarios: turns a pass over a block of conversations into calls of the engine.

    A new one is a file with a subclass and a YAML in conf/scenario. It makes the prompt of each call itself,
    from `TurnRunner.chat_prompt`, from earlier answers (`TurnResult.generation.output_ids`) and from ids that
    it forces; it numbers its calls by `Call.turn` and `Call.sample`; and it sends calls that do not need each
    other's answers in one `TurnRunner.ask`, so that they run as a batch.
    """

    one_at_a_time: ClassVar[bool] = False
    """Whether calls are made one by one, so that it takes `measure.batch_size=1`."""
    name: str
    """As the tables call it."""
    memory: Literal["call", "question", "process"] | None = None
    """Replaces the scope of every arm that remembers beyond a call, for ablations: `call` has all of them
    forget between the calls of a question. An arm's own `remember` comes before it."""
    warm_up: Literal["ours", "paper"] = "ours"
    """What every arm answers before anything is measured. `ours`: prompts outside the test set, a few tokens
    of each. `paper`: the first question of the test set three times, in full, with a prefix
    (SpecTTS-Bench)."""

    @property
    def forces(self) -> bool:
        """Whether calls force tokens, which an engine has to know how to do."""
        return False

    def card(self, model: ServedModel) -> dict[str, Any]:
        """What the scenario makes of this model, for the manifest; JSON types, empty if nothing.

        Raises:
            ConfigError: the model lacks what the scenario needs.
        """
        return {}

    def longest_sequence(
        self, conversation: Conversation, render: Callable[[Sequence[Message]], list[int]], cap: int
    ) -> int:
        """Tokens of the longest prompt and answer together, if every answer reaches the cap.

        render: messages to the token ids of a prompt.
        """
        turns = [Message(role="user", content=turn) for turn in conversation.turns]
        prompt = len(conversation.input_ids or render(turns))
        return prompt + self.num_chained_calls(conversation) * cap

    def warmup(self, own: Sequence[Conversation], asked: Sequence[Conversation]) -> list[Conversation]:
        """The conversations of the warm-up. own: prompts outside the test set. asked: the test set."""
        if self.warm_up == "ours":
            return list(own)
        first = asked[0]
        turns = tuple(_WARMUP_PREFIX + turn for turn in first.turns)
        return [replace(first, id=f"warm-up {i}", turns=turns) for i in range(_NUM_PAPER_WARMUPS)]

    @abstractmethod
    def num_calls(self, conversation: Conversation) -> int:
        """Calls that one pass makes for this conversation."""

    def num_chained_calls(self, conversation: Conversation) -> int:
        """The most answers of one pass that stand in one context; for the room that caches need."""
        return self.num_calls(conversation)

    @abstractmethod
    def play(
        self, runner: TurnRunner, one_pass: Pass, block: Block, frozen: Answers | None = None
    ) -> list[TurnResult]:
        """Make all calls of one pass over the block.

        frozen: the answers to put into later prompts instead of the player's own; see `history`.

        Raises:
            ConfigError: a prompt leaves no room for an answer.
        """

    def history(self, runner: TurnRunner, vanilla: Player, block: Block) -> Answers | None:
        """Vanilla's answers to the block, for all players' later prompts (`task.history=frozen`).

        None where no prompt of the block holds an earlier answer.
        """
        return None
