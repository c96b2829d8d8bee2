"""The recorded cases of the official EAGLE code, by the folder that they lie in."""

from __future__ import annotations

from harness.conformance.case import Case, Check, Targets
from harness.conformance.eagle import greedy, sampling, statistics

_KINDS = {"cases": greedy.checks, "sampling": sampling.checks, "statistics": statistics.checks}


def claims(case: Case) -> bool:
    """Whether the case is one of this family."""
    return "use_eagle3" in case.data and case.kind in _KINDS


def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare a case."""
    return _KINDS[case.kind](case, targets)
