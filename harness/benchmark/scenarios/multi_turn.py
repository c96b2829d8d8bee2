"""The usual scenario: the turns of a conversation one after the other, the answers so far in every prompt."""

from __future__ import annotations

from pydantic import Field
from typing_extensions import override

from harness.benchmark.scenarios.scenario import Scenario
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
from harness.tasks.conversation import Conversation


@configurable
class MultiTurn(Scenario):
    """Plays every turn, or the first few, as long as the context has room for the next prompt."""

    name: str = "multi_turn"
    max_turns: int | None = Field(default=None, ge=1)
    """Turns of a conversation that are played; None is all of them."""

    @override
    def num_calls(self, conversation: Conversation) -> int:
        return min(conversation.num_turns, self.max_turns or conversation.num_turns)

    @override
    def play(
        self, runner: TurnRunner, one_pass: Pass, block: Block, frozen: Answers | None = None
    ) -> list[TurnResult]:
        answers: dict[str, list[str]] = {conversation.id: [] for conversation in block}
        results: list[TurnResult] = []
        for turn in range(max(map(self.num_calls, block))):
            calls = [
                Call(
                    conversation=conversation,
                    prompt=runner.chat_prompt(conversation, answers[conversation.id]),
                    turn=turn,
                    sample=one_pass.seed,
                )
                for conversation in block
                if turn < self.num_calls(conversation) and len(answers[conversation.id]) == turn
            ]
            if turn:
                # A conversation that has grown too long ends; only a first prompt must have room.
                calls = [call for call in calls if runner.has_room(call)]
            if not calls:
                break
            made = runner.ask(one_pass, calls)
            results += made
            for one in made:
                if turn + 1 < self.num_calls(one.call.conversation):
                    text = runner.decode(one.generation.output_ids) if frozen is None else frozen[one.key]
                    answers[one.call.conversation.id].append(text)
        return results

    @override
    def history(self, runner: TurnRunner, vanilla: Player, block: Block) -> Answers | None:
        if max(map(self.num_calls, block)) == 1:
            return None
        passes = [Pass(player=vanilla, seed=seed) for seed in range(len(runner.params.seeds))]
        return {
            one.key: runner.decode(one.generation.output_ids)
            for one_pass in passes
            for one in self.play(runner, one_pass, block)
        }
