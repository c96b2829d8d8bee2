"""The recorded cases of block drafters, by what they record: rounds, single calls, or training batches."""

from __future__ import annotations

from harness.conformance.block import calls, rounds, training
from harness.conformance.case import Case, Check, Targets

_FAMILIES = ("dflash", "dflash2", "dspark", "speculators_block")


def claims(case: Case) -> bool:
    """Whether the case is one of this family."""
    return case.data.get("family") in _FAMILIES


def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare a case."""
    if "rounds" in case.data:
        return rounds.checks(case, targets)
    if "anchor_positions" not in case.tensors:
        return calls.checks(case, targets)
    if case.data["family"] == "speculators_block":
        return training.speculators_checks(case, targets)
    return training.deepspec_checks(case, targets)
