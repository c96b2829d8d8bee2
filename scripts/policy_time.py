"""The time of a cost-aware tree's own decisions: python scripts/policy_time.py [key=value ...].

Runs CAST on `task=smoke` in this process, as `harness.bench` does with these arguments. Printed
is the share of drafting that growing a tree takes without the forwards of the head; times the row's
`split.draft`, that is about the policy's share of a round: prompts and the warm-up count as drafting, too.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from harness.bench import bench
from methods.shared.cost_aware.tree import CostAwareTree
from methods.shared.eagle.drafter import HeadDrafter
from methods.shared.eagle.growth import Growth

spent: Counter[str] = Counter()
inside: list[str] = []


def clock(owner: type, name: str) -> None:
    """Add the seconds in a method to `spent`, under its class and the classes that called it."""
    plain: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        inside.append(owner.__name__)
        begin = time.perf_counter()
        try:
            return plain(*args, **kwargs)
        finally:
            spent[" > ".join(inside)] += time.perf_counter() - begin
            inside.pop()

    setattr(owner, name, timed)


def main() -> None:
    """Run, then print the share."""
    for owner, name in [
        (CostAwareTree, "grow"),
        (CostAwareTree, "observe"),
        (Growth, "start"),
        (Growth, "expand"),
        (HeadDrafter, "propose"),
        (HeadDrafter, "observe"),
    ]:
        clock(owner, name)
    defaults = [
        "~experiment",
        "method=cast",
        "task=smoke",
        "measure=quick",
        "measure.repeats=1",
        "max_new_tokens=32",
    ]
    defaults += ["ladder=none", "tracker=none"]
    sys.argv[1:] = [*defaults, *sys.argv[1:]]
    try:
        bench()
    finally:  # the run ends this process itself
        policy = spent["HeadDrafter > CostAwareTree"] - spent["HeadDrafter > CostAwareTree > Growth"]
        share = policy / spent["HeadDrafter"]
        print(f"policy {policy:.3f} s, drafting {spent['HeadDrafter']:.3f} s: {share:.1%}", file=sys.stderr)


if __name__ == "__main__":
    main()
