"""The recorded cases of SpecBlock, by what they record: rounds, trees, losses, or single calls."""

from __future__ import annotations

from harness.conformance.case import Case, Check, Targets
from harness.conformance.specblock import calls, rounds, training, trees


def claims(case: Case) -> bool:
    """Whether the case is one of this family."""
    return case.data.get("family") == "specblock"


def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare a case.

    Raises:
        ConfigError: the head or its target is not among the models.
        KeyError: a case of another layout.
    """
    data = case.data
    if "rounds" in data:
        return rounds.checks(case, targets)
    if "tree" in data:
        return trees.checks(case, targets)
    if "plosses" in data:
        return training.checks(case, targets)
    return calls.unrolled(case, targets) if "M" in data else calls.checks(case, targets)
