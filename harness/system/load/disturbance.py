"""What counts as a disturbance: every threshold, with its reason, and the judgement of one block.

A block is judged by the machine's counters alone, never by the times that were measured: choosing among
measurements by their times would favour whoever was lucky.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.system.load.counters import Usage, together

MIN_WINDOW_S = 1.0
"""Seconds that passes last together before their counters are compared. The kernel counts in hundredths of
a second, so a shorter window would be judged by rounding."""
MAX_TAKEN_CORES = 0.1
"""Cores that others may use on average over a block, beyond those that the run leaves free. The threads of a
forward wait for one another, so what is taken from one core is lost on all: 0.1 core costs up to a tenth of
the speed, twice what vanilla differs from itself on a quiet machine (0.05)."""
MAX_TAKEN_SHARE = 0.01
"""The same as a share of the machine, where that is more: housekeeping grows with the number of cores."""
MAX_WINDOW_CORES = 0.5
"""Cores that others may use in the worst window, on top of that. A window is often one pass of one method:
a pass at half its speed moves the method's sum over 12 prompts and two repeats by 2 to 4 %, and the average
over the block hides it."""
MAX_BANDWIDTH_LOSS = 0.2
"""Share of the read bandwidth that may be missing before or after a block. Decoding is bound by reading
weights, and two probes of a quiet machine differ by up to a tenth."""
MAX_THROTTLED = 0.05
"""Share of the wall time for which a quota may hold the process back: what vanilla differs from itself by."""
MAX_GPU_OTHERS = 0.05
"""Share of the GPU's time that kernels of others may take; for the same reason."""
MAX_GPU_SLOWED = 0.0
"""Share of looks at which heat or power may have slowed the GPU: a slowed clock stays slow for seconds, and
by more than the differences that are measured."""
MIN_STOP_S = 1.0
"""Seconds in which a thread that always computes did not run, without anybody who kept it waiting: a stop.
The counters are exact to some hundredths of a second, and no page fault takes that long."""
MIN_STOP_SHARE = 0.25
"""The same as a share of the window, so that many small waits of a long window are not taken for a stop."""
MIN_SLEEP_S = 0.1
"""Seconds of suspension that count as one; the difference of the two clocks is exact to far less."""


_TICK_S = 0.01


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the thresholds need to know of a run and its machine."""

    num_cores: int
    """Logical cores that the counters are read of."""
    spare_cores: int
    """Cores that the run leaves free: others may use them without taking anything from it."""
    decodes_here: bool = True
    """False where a server decodes: its work would count as somebody else's, and shares are not known."""
    always_computes: bool
    """Whether the reading thread computes all the time: it waits for no GPU, no server and no other rank."""

    @property
    def max_cores(self) -> float:
        """Cores that others may use over a block."""
        return max(MAX_TAKEN_CORES, MAX_TAKEN_SHARE * self.num_cores) + self.spare_cores

    def taken(self, windows: Sequence[Usage]) -> dict[str, float]:
        """Causes among processor times: the share of the machine that each took, where that was too much.

        Windows that last less than `MIN_WINDOW_S` together are not judged.
        """
        whole = together(windows)
        if not self.decodes_here or whole.wall_s < MIN_WINDOW_S:
            return {}
        found: dict[str, float] = {}
        mean, worst = (others_cores([whole]), others_cores(windows))
        if mean > self.max_cores:
            found["others"] = mean / self.num_cores
        elif worst > self.max_cores + MAX_WINDOW_CORES:
            found["others"] = worst / self.num_cores
        # What a hypervisor takes, it takes from cores that run: spare ones do not help.
        stolen = (whole.stolen_s or 0.0) / whole.wall_s
        if stolen > self.max_cores - self.spare_cores:
            found["steal"] = stolen / self.num_cores
        throttled = (whole.throttled_s or 0.0) / whole.wall_s
        if throttled > MAX_THROTTLED:
            found["quota"] = min(throttled, 1.0)
        return found

    def is_quiet(self, window: Usage) -> bool:
        """Whether nobody takes too much now; for a window in which the run itself waits."""
        return not self.taken([window])

    def stopped(self, windows: Sequence[Usage]) -> str:
        """Why the times of these windows mean nothing: the process did not run. "" if it did."""
        slept_s = sum(one.slept_s or 0.0 for one in windows)
        if slept_s > MIN_SLEEP_S:
            return f"the machine was suspended for {slept_s:.1f} s"
        missing_s = self.missing_s(windows) or 0.0
        for_s = f" for {missing_s:.1f} s" if missing_s else ""
        if any(one.num_stops for one in windows):
            return f"the process was stopped{for_s} and continued"
        return f"the process did not run{for_s}, and nobody else did" if missing_s else ""

    def missing_s(self, windows: Sequence[Usage]) -> float | None:
        """Seconds for which the process was stopped, as the clocks show it; None where they cannot."""
        if not self.always_computes:
            return None
        return sum(
            one.missing_s
            for one in windows
            if one.missing_s > MIN_STOP_S and one.missing_s > MIN_STOP_SHARE * one.wall_s
        )


def others_cores(windows: Sequence[Usage]) -> float:
    """The cores that others used in the worst window."""
    return max(one.others_s / max(one.wall_s, _TICK_S) for one in windows)


def other_causes(shares: Mapping[str, float | None]) -> dict[str, float]:
    """Causes besides processor time.

    shares: by cause (bandwidth, gpu_others, gpu_slowed), None where it is not known.
    """
    limits = {
        "bandwidth": MAX_BANDWIDTH_LOSS,
        "gpu_others": MAX_GPU_OTHERS,
        "gpu_slowed": MAX_GPU_SLOWED,
    }
    return {name: share for name, share in shares.items() if share is not None and share > limits[name]}
