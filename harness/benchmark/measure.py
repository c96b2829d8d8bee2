"""Measure: the settings of the protocol, that is how much is measured and how often."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.config import configurable


@configurable
class Measure:
    """How much is measured. `full` is what the protocol asks for; `quick` and `acceptance` mark their rows.

    batch_size: sequences that run at the same time. waves: above 1, a block of interleaved arms is that many
    times as many conversations, which enter as others leave; a block's end, where places stay empty, counts.
    profile `acceptance` runs one untimed pass in batches of `batch_size`: tau and verdicts, no clock.
    repeats: timed repetitions of vanilla and every arm at temperature 0; sampled_repeats: above, a seed.
    rung_repeats, sampled_rung_repeats: the same for the rungs of the ladder; 0 leaves them out.
    num_warmup: prompts (outside the test set) run before the clock counts, per arm.
    num_null: conversations whose vanilla tokens are replayed for the null of the tie rate; None is all.
    order_seed: of the random order of arms within a prompt.
    bandwidth_gib: buffer of the read-bandwidth probe; None is 1, or four times the last-level cache if more,
    and on a device 8, or half of what is free: beside a read of less a launch is long.
    """

    profile: Literal["full", "quick", "acceptance"]
    repeats: int = Field(default=3, ge=1)
    sampled_repeats: int = Field(default=3, ge=1)
    rung_repeats: int = Field(default=3, ge=0)
    sampled_rung_repeats: int = Field(default=3, ge=0)
    num_warmup: int = Field(default=2, ge=0)
    num_null: int | None = Field(default=None, ge=0)
    batch_size: int = Field(default=1, ge=1)
    waves: int = Field(default=4, ge=1)
    order_seed: int = 0
    bandwidth_gib: float | None = Field(default=None, gt=0)

    @property
    def timed(self) -> bool:
        """Whether the clock counts."""
        return self.profile != "acceptance"

    @property
    def block_size(self) -> int:
        """Conversations that an arm is given together."""
        return self.batch_size * self.waves if self.batch_size > 1 else 1

    def repeats_at(self, greedy: bool) -> int:
        """Repetitions of an arm."""
        return self.repeats if greedy else self.sampled_repeats

    def rung_repeats_at(self, greedy: bool) -> int:
        """Repetitions of a rung; a rung has no batch and is there for its clock only."""
        if not self.timed or self.batch_size > 1:
            return 0
        return self.rung_repeats if greedy else self.sampled_rung_repeats
