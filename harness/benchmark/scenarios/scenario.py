"""The base of all scenarios: how the turns of a question are played."""

from __future__ import annotations

from abc import ABC, abstractmethod

from harness.benchmark.scenarios.turn_runner import Answers, Block, Pass, Player, TurnResult, TurnRunner
from harness.config import configurable
from harness.tasks.conversation import Conversation


@configurable
class Scenario(ABC):
    """Base of all scenarios: turns a pass over a block of conversations into calls of the engine.

    A new one is a file with a subclass and a YAML in conf/scenario. It makes the prompt of each call itself,
    from `TurnRunner.chat_prompt`, from earlier answers (`TurnResult.generation.output_ids`) and from ids that
    it forces; it numbers its calls by `Call.turn` and `Call.sample`; and it sends calls that do not need each
    other's answers in one `TurnRunner.ask`, so that they run as a batch.
    """

    name: str
    """As the tables call it."""

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
