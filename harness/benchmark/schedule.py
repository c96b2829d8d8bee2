"""The schedule of a run: its blocks, the order of the passes over each, and how much that is."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.benchmark.plan import Plan
from harness.benchmark.scenarios.turn_runner import Block, Pass
from harness.decoding.sampling import DecodingParams
from harness.tasks.conversation import Conversation


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What a run measures, and in which order."""

    plan: Plan
    params: DecodingParams
    conversations: Sequence[Conversation]

    def blocks(self) -> list[Block]:
        """The conversations in groups that are decoded together, in their order."""
        size = self.plan.measure.block_size
        starts = range(0, len(self.conversations), size)
        return [tuple(self.conversations[start : start + size]) for start in starts]

    def passes(self, block: Block) -> list[Pass]:
        """Every pass over the block, in a random order that is drawn for this block."""
        repeats = self.plan.repeats(self.params)
        passes = [
            (player, seed, repeat)
            for player in self.plan.players(self.params)
            for seed in range(len(self.params.seeds))
            for repeat in range(repeats[player.name])
        ]
        random.Random(f"{self.plan.measure.order_seed}:{block_name(block)}").shuffle(passes)
        return [
            Pass(player=player, seed=seed, repeat=repeat, order=order)
            for order, (player, seed, repeat) in enumerate(passes)
        ]

    def num_generations(self, blocks: Sequence[Block]) -> int:
        """Generations of all passes over these blocks."""
        return sum(len(self.passes(block)) * self._num_calls(block) for block in blocks)

    def most_seconds(self, blocks: Sequence[Block], pace: Mapping[str, float]) -> float | None:
        """Seconds for the blocks if every answer reaches the cap; None where nothing was warmed up.

        pace: seconds per token of each player, by name.
        """
        if not pace:
            return None
        per_token = [sum(pace[one.player.name] for one in self.passes(block)) for block in blocks]
        calls = map(self._num_calls, blocks)
        seconds = sum(num * spent for num, spent in zip(calls, per_token, strict=True))
        return self.params.max_new_tokens * seconds

    def _num_calls(self, block: Block) -> int:
        return sum(map(self.plan.scenario.num_calls, block))


def block_name(block: Block) -> str:
    """The name of a block in the journal."""
    return ", ".join(conversation.id for conversation in block)
