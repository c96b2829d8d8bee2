"""The settings of the protocol: how much is measured, and how often."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from harness.config import configurable


@configurable
class Measure:
    """How much is measured, and how often."""

    profile: Literal["full", "quick", "acceptance"]
    """`full` is what the protocol asks for; the rows of the others are marked. `acceptance` makes one untimed
    pass in batches of `batch_size`: acceptance lengths and verdicts, no seconds."""
    repeats: int = Field(default=3, ge=1)
    """Timed repetitions of vanilla and of every arm at temperature 0."""
    sampled_repeats: int = Field(default=3, ge=1)
    """The same above temperature 0, per seed. Vanilla has two at least, so that it compares with itself."""
    rung_repeats: int = Field(default=3, ge=0)
    """Timed repetitions of every rung of the ladder at temperature 0; 0 leaves the rungs out."""
    sampled_rung_repeats: int = Field(default=3, ge=0)
    """The same above temperature 0, per seed."""
    num_warmup: int = Field(default=2, ge=0)
    """Prompts outside the test set that every arm answers before the clock counts."""
    num_null: int | None = Field(default=None, ge=0)
    """Conversations whose vanilla tokens are replayed for the null of the tie rate; None is all of them."""
    batch_size: int = Field(default=1, ge=1)
    """Sequences that run at the same time."""
    waves: int = Field(default=4, ge=1)
    """Conversations of a block over `batch_size`, where that is above 1: conversations enter as others leave.
    The end of a block, where rows of the batch stay empty, counts."""
    order_seed: int = 0
    """Seed of the random order of the arms within a block."""
    bandwidth_gib: float | None = Field(default=None, gt=0)
    """GiB of the buffer of the read-bandwidth probe. None: on a CPU 1, or four times the last-level cache if
    that is more; on a GPU 8, or half of the free memory if that is less, because a kernel's launch is long
    beside a smaller read."""

    quiet: Literal["warn", "wait", "off"] = "warn"
    """What happens about other work on the machine. `warn` reports it and measures disturbed blocks again at
    the end of the run; `wait` also waits before each block until the machine is quiet, for a bounded time;
    `off` only records it. A block in which the process was stopped is measured again in any case."""

    @field_validator("quiet", mode="before")
    @classmethod
    def _spelled_out(cls, value: object) -> object:
        """YAML reads an unquoted `off` as false."""
        return "off" if value is False else value

    @property
    def timed(self) -> bool:
        """Whether the clock counts."""
        return self.profile != "acceptance"

    @property
    def block_size(self) -> int:
        """Conversations that an arm is given at once."""
        return self.batch_size * self.waves if self.batch_size > 1 else 1

    def repeats_at(self, greedy: bool) -> int:
        """Repetitions of an arm; 1 if untimed."""
        if not self.timed:
            return 1
        return self.repeats if greedy else self.sampled_repeats

    def baseline_repeats_at(self, greedy: bool) -> int:
        """Repetitions of vanilla: two or more if timed, because the A/A floor compares it with itself."""
        return max(self.repeats_at(greedy), 2 if self.timed else 1)

    def rung_repeats_at(self, greedy: bool) -> int:
        """Repetitions of a rung: 0 if untimed or in batches, as a rung gives only the time of one request."""
        if not self.timed or self.batch_size > 1:
            return 0
        return self.rung_repeats if greedy else self.sampled_rung_repeats
