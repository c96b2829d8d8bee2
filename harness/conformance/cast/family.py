"""The recorded cases of CAST, and the policy that conf/recorded/cast.yaml declares for them.

Three kinds: algorithm 1 over cost curves of every shape, the threshold of theorem 4.1 that makes EAGLE's cut,
and whole trees over tables of a drafter and of costs. Numbers were derived in float64 and are compared so.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.resources import files
from typing import Any

import numpy as np
from hydra.utils import get_class
from numpy.typing import ArrayLike
from omegaconf import OmegaConf

from harness.config import build
from harness.conformance.case import Case, Check, Targets, equal
from harness.conformance.cast.grower import RecordedGrower
from harness.drafting.draft import Draft

_TOLERANCE = 1e-9
_FILE = files("conf") / "recorded" / "cast.yaml"


def claims(case: Case) -> bool:
    """Whether the case is one of this family."""
    return case.data.get("family") == "cast"


def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare a case.

    Raises:
        KeyError: a case of another layout.
    """
    if "draft_tables" in case.data:
        return _tree(case.data)
    if "eps_monotone" in case.data:
        return _algorithm(case.data)
    return _equivalence(case.data)


def _declared(**given: Any) -> Any:
    """The declaration, with what a case gives filled in."""
    return OmegaConf.merge(OmegaConf.create(_FILE.read_text(encoding="utf-8")), given)


def _algorithm(data: dict[str, Any]) -> list[Check]:
    rules: Any = import_module(_declared().rules)
    found = []
    for number, one in enumerate(data["cases"]):
        name = f"{number} ({one['kind']})"
        raw = np.asarray(one["cost_raw"], float)
        cost = rules.strictly_rising(raw / raw[0], data["eps_monotone"])
        utility = np.cumsum(one["confidence_sorted"])
        found += [
            _near(f"{name}: cost", cost, one["cost_used"]),
            equal(f"{name}: kept", rules.num_worthwhile(utility, cost, one["C"]), one["kept"]),
            equal(
                f"{name}: kept with >=",
                rules.num_worthwhile(utility, cost, one["C"], inclusive=True),
                one["kept_with_ge"],
            ),
        ]
    for one in data.get("select", ()):
        bucket = rules.bucket(one["c"], one["L"], one["M"])
        found.append(equal(f"bucket of {one['c']} in {one['M']} x {one['L']}", bucket, one["select"]))
    return found


def _equivalence(data: dict[str, Any]) -> list[Check]:
    rules: Any = import_module(_declared().rules)
    found = []
    for number, one in enumerate(data["cases"]):
        mean = np.asarray(one["v"], float).mean(0)
        cost = one["lambda"] * np.arange(1, len(mean) + 1) + one["delta"]
        kept = rules.num_worthwhile(np.cumsum(mean), cost, one["C1"], inclusive=True)
        found.append(equal(f"{number}: kept", kept, one["kept_with_ge"]))
    return found


def _tree(data: dict[str, Any]) -> list[Check]:
    """Every decision about a tree, and the nodes that are left."""
    settings = data["settings"]
    given = _declared(
        settings={
            "candidates": "kept",
            **settings,
            "context": "prefix" if settings["ctx_prefix"] else "draft",
        },
    )
    policy = build(given.tree, "conf/recorded/cast.yaml: tree")
    # Not through `build`, which takes a second for the curves.
    options: Any = OmegaConf.to_container(given.costs, resolve=True)
    policy.costs = get_class(options.pop("_target_"))(
        target={int(place): curve for place, curve in data["S_T"].items()},
        drafter={int(place): curve for place, curve in data["S_D"].items()},
        **options,
    )
    policy.rule.gate.ratios = list(settings["buffer"])
    draft = policy.grow(RecordedGrower(data["draft_tables"], settings["n0"]))
    choice = policy.choice
    found = [equal("layers", len(choice.layers), len(data["layers"]))]
    for number, (layer, one) in enumerate(zip(choice.layers, data["layers"], strict=False)):
        name = f"layer {number}"
        found += [
            equal(f"{name}: n", layer.num_nodes, one["n"]),
            equal(f"{name}: continues", layer.continues, one["continues"]),
            _near(f"{name}: u", layer.utility, one["u"]),
            _near(f"{name}: c", layer.cost, one["c"]),
            _near(f"{name}: alpha", layer.mean_ratio, one["alpha"]),
            _near(f"{name}: compared with C2", layer.gain, one["value_compared_with_C2"]),
        ]
    found += [
        equal("m", choice.num_verified, data["m"]),
        _near("rerank: u", choice.utility, data["rerank_u"]),
        _near("rerank: c", choice.cost, data["rerank_c"]),
        _near("ratios after", policy.rule.gate.ratios, data["buffer_after"]),
    ]
    for row, kept in enumerate(data["kept_paths"]):
        found.append(equal(f"row {row}: kept paths", _paths(draft, row), sorted(kept)))
    return found


def _paths(draft: Draft, row: int) -> list[list[int]]:
    """The drafted nodes of a sequence as paths from the pending token, sorted."""
    found: list[list[int]] = []
    for token, parent in zip(draft.tokens[row].tolist(), draft.parents[row].tolist(), strict=True):
        found.append([*(found[parent] if parent >= 0 else []), token])
    return sorted(found)


def _near(name: str, ours: ArrayLike, theirs: Sequence[float] | float) -> Check:
    """Compare float64 numbers."""
    mine, recorded = np.asarray(ours, float), np.asarray(theirs, float)
    if mine.shape != recorded.shape:
        return Check(name, False, f"shape {list(mine.shape)} instead of {list(recorded.shape)}")
    gap = float(np.abs(mine - recorded).max(initial=0.0))
    return Check(name, gap <= _TOLERANCE, "" if gap <= _TOLERANCE else f"off by {gap:.2g}")
