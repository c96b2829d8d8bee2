"""Best of N: the same question is answered N times, one sample after the other.

SpecTTS-Bench (arXiv 2509.04474, code 6b33e4a) draws four samples at T = 0.6. It measures what they cost; no
sample is chosen, because that takes a verifier.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from typing_extensions import override

from harness.benchmark.scenarios.repeated_question import RepeatedQuestion, question_of
from harness.benchmark.scenarios.turn_runner import Answers, Block, Call, Pass, TurnResult, TurnRunner
from harness.config import configurable
from harness.tasks.conversation import Conversation, Message


@configurable
class BestOfN(RepeatedQuestion):
    """Asks for N samples in turn, each with a random stream of its own."""

    name: str = "best_of_n"
    num_samples: int = Field(default=4, ge=1)
    """N. Above temperature 0, N samples are drawn for every seed; at 0 they are all the same."""
    bon_prompt: Literal["clean", "accumulate"] = "clean"
    """`clean`: every sample gets the question. `accumulate`: sample j gets it j times, as j messages of the
    user, which is what the paper's code does because it never empties its list of messages."""

    @override
    def num_calls(self, conversation: Conversation) -> int:
        return self.num_samples

    @override
    def num_chained_calls(self, conversation: Conversation) -> int:
        return 1

    @override
    def longest_prompt(self, conversation: Conversation) -> list[Message]:
        return self.messages(conversation, self.num_samples - 1)

    def messages(self, conversation: Conversation, number: int) -> list[Message]:
        """The prompt of sample `number`, counted from 0."""
        copies = 1 if self.bon_prompt == "clean" else number + 1
        return [Message(role="user", content=question_of(conversation))] * copies

    @override
    def play(
        self, runner: TurnRunner, one_pass: Pass, block: Block, frozen: Answers | None = None
    ) -> list[TurnResult]:
        forced = self.thinking.tags(runner.model.tokenizer).forced(runner.params.max_new_tokens)
        results: list[TurnResult] = []
        for conversation in block:
            for number in range(self.num_samples):
                call = Call(
                    conversation=conversation,
                    prompt=runner.render(self.messages(conversation, number)),
                    sample=one_pass.seed * self.num_samples + number,
                    forced=forced,
                )
                results += runner.ask(one_pass, [call], same_question=number > 0)
        return results
