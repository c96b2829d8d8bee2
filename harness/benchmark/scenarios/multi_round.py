"""Multi-round thinking: the target looks at its answer again and answers the question once more.

SpecTTS-Bench (arXiv 2509.04474, code 6b33e4a) and "Think Twice" (Tian et al. 2025, arXiv 2503.19855): each
round is a chat of its own, which holds the question and the answer of the round before.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from typing_extensions import override

from harness.benchmark.scenarios.repeated_question import RepeatedQuestion, question_of
from harness.benchmark.scenarios.turn_runner import (
    Answers,
    Block,
    Call,
    Pass,
    Player,
    TurnResult,
    TurnRunner,
)
from harness.config import configurable
from harness.tasks.conversation import Conversation, Message

_AGAIN = (
    "\nPreviously I tried to solve the problem. Now I need to double check and verify my previous answer and"
    " re-answer the question. My previous answer is: <answer> {answer} </answer>, and please re-answer."
)
"""The paper's, to the character."""


def round_prompt(question: str, answer: str | None) -> str:
    """The user's message: the question, and the answer of the round before where there is one."""
    return question if answer is None else question + _AGAIN.format(answer=answer)


@configurable
class MultiRound(RepeatedQuestion):
    """Asks, then has the answer checked, `num_rounds` times in all."""

    name: str = "multi_round"
    num_rounds: int = Field(default=2, ge=1)
    """Rounds of thinking, the first one among them; the paper has two."""

    @override
    def num_calls(self, conversation: Conversation) -> int:
        return self.num_rounds

    @override
    def num_chained_calls(self, conversation: Conversation) -> int:
        return min(self.num_rounds, 2)

    @override
    def longest_prompt(self, conversation: Conversation) -> list[Message]:
        answer = "" if self.num_rounds > 1 else None
        return [Message(role="user", content=round_prompt(question_of(conversation), answer))]

    @override
    def play(
        self, runner: TurnRunner, one_pass: Pass, block: Block, frozen: Answers | None = None
    ) -> list[TurnResult]:
        tags = self.thinking.tags(runner.model.tokenizer)
        forced = tags.forced(runner.params.max_new_tokens)
        results: list[TurnResult] = []
        for asked in block:
            # Only the question is played: a later turn of the chat is no round of thinking.
            conversation = replace(asked, turns=(question_of(asked),))
            answer: str | None = None
            for turn in range(self.num_rounds):
                text = round_prompt(conversation.turns[0], answer)
                call = Call(
                    conversation=conversation,
                    prompt=runner.render([Message(role="user", content=text)]),
                    turn=turn,
                    sample=one_pass.seed,
                    forced=forced,
                )
                # The answer before may have left no room for another round.
                if turn and not runner.has_room(call):
                    break
                (made,) = runner.ask(one_pass, [call], same_question=turn > 0)
                results.append(made)
                own = tags.answer(made.generation.output_ids, runner.decode)
                answer = own if frozen is None else frozen.get(made.key)
        return results

    @override
    def history(self, runner: TurnRunner, vanilla: Player, block: Block) -> Answers | None:
        if self.num_rounds == 1:
            return None
        tags = self.thinking.tags(runner.model.tokenizer)
        passes = [Pass(player=vanilla, seed=seed) for seed in range(len(runner.params.seeds))]
        found = {
            one.key: tags.answer(one.generation.output_ids, runner.decode)
            for one_pass in passes
            for one in self.play(runner, one_pass, block)
        }
        # A thought that did not end leaves no answer to show again.
        return {key: answer for key, answer in found.items() if answer is not None}
