"""Recorded drafter traces, and the drafters that conf/recorded declares for them.

A case states the method whose code was recorded and its parameters. `conf/recorded/METHOD.yaml` says which of
our drafters drafts the same, as configuration nodes with interpolations such as `${params.n_predicts}`; the
key of a node names the recorded trees that it has to draft.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from harness.config import ConfigError, build
from harness.conformance.case import Case, Check, Targets
from harness.conformance.drafter_trace import replay

FORMAT = "drafter-trace/1"
_DECLARATIONS = files("conf") / "recorded"


def claims(case: Case) -> bool:
    """Whether the case is one of this family, and conf/recorded declares its method."""
    return case.data.get("format") == FORMAT and (_DECLARATIONS / f"{case.data.get('method')}.yaml").is_file()


def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare every draft of a case."""
    return [check for which, node in declared(case) for check in replay.replayed(case, which, node)]


def declared(case: Case) -> Iterator[tuple[replay.Which, Any]]:
    """The recorded trees and the drafter's node for each, with the case's parameters filled in.

    Raises:
        ConfigError: the declaration names no recorded trees.
    """
    file = _DECLARATIONS / f"{case.data['method']}.yaml"
    nodes = cast("DictConfig", OmegaConf.create(file.read_text(encoding="utf-8")))
    params = case.data["params"]
    last = {name: value[-1] for name, value in params.items() if isinstance(value, list) and value}
    given = OmegaConf.create({"params": params, "case": case.data, "last": last})
    for which in map(str, nodes):
        if which in replay.WHICH:
            filled = OmegaConf.merge(given, {"names": nodes.get("names", {}), "drafter": nodes[which]})
            yield which, build(filled.drafter, f"conf/recorded/{file.name}: {which}")
        elif which != "names":
            raise ConfigError(
                f"conf/recorded/{file.name}: unknown key {which!r}; allowed are names and"
                f" {', '.join(replay.WHICH)}"
            )
