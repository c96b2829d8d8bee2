"""The base of scenarios that ask a reasoning model the same question several times.

The protocol is SpecTTS-Bench's (arXiv 2509.04474, code 6b33e4a). A question is the first turn of a
conversation; every call is a fresh chat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from harness.benchmark.scenarios.scenario import Scenario
from harness.benchmark.scenarios.thinking import Thinking
from harness.config import ConfigError, configurable
from harness.engines.engine import ServedModel
from harness.tasks.conversation import Conversation, Message


@configurable
class RepeatedQuestion(Scenario):
    """Asks one question at a time, so that memory of it can reach from one call to the next."""

    one_at_a_time: ClassVar[bool] = True
    thinking: Thinking = Field(default_factory=Thinking)

    @property
    @override
    def forces(self) -> bool:
        return self.thinking.budget_share is not None

    @override
    def card(self, model: ServedModel) -> dict[str, Any]:
        return {"thinking": self.thinking.tags(model.tokenizer).card()}

    @override
    def longest_sequence(
        self, conversation: Conversation, render: Callable[[Sequence[Message]], list[int]], cap: int
    ) -> int:
        return len(render(self.longest_prompt(conversation))) + self.num_chained_calls(conversation) * cap

    def longest_prompt(self, conversation: Conversation) -> list[Message]:
        """The messages of the longest prompt, without an earlier answer.

        Raises:
            ConfigError: the conversation has no text.
        """
        return [Message(role="user", content=question_of(conversation))]


def question_of(conversation: Conversation) -> str:
    """The user's first message.

    Raises:
        ConfigError: the prompt is token ids.
    """
    if not conversation.turns:
        raise ConfigError(
            f"conversation {conversation.id}: this scenario writes prompts around the text of a question, and"
            " a prompt of token ids has none; type scenario=single, or choose a task of texts"
        )
    return conversation.turns[0]
