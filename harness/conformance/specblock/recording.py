"""The network, target and trees of a recorded case, as conf/recorded/specblock.yaml declares them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.config import ConfigError, build
from harness.conformance.case import Case, Targets
from harness.conformance.declared import Declared
from harness.runtime.cache import SlotCache

RANK_TOLERANCE = 5e-4
"""For what the rank head reads and says, and for losses."""


_DECLARED = Declared("specblock")
module = _DECLARED.module


def network_of(case: Case) -> Any:
    """The network of a case, in float32 and without a target."""
    folder = case.model_folder
    stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    facts = module("facts").TargetFacts(
        hidden_size=stated.get("target_hidden_size", stated["hidden_size"]),
        vocab_size=stated["vocab_size"],
        num_layers=1,
    )
    layout = module("checkpoint").LAYOUT
    return layout.load(str(folder), None, facts, torch.float32, torch.device("cpu")).network


def target_of(case: Case, targets: Targets) -> Any:
    """The target of a case: the one that it names, or that the name of its head ends in.

    Raises:
        ConfigError: there is no such model.
    """
    named = case.data.get("target") or str(case.data["model"]).partition("-")[2]
    if not named or not (case.root / "models" / named).is_dir():
        raise ConfigError(
            f"{case.name}: the head {case.data['model']} is for the target {named!r}, which is not in models/"
        )
    return targets.of(replace(case, data={**case.data, "target": named}))


def embedding_of(case: Case, targets: Targets, network: Any) -> Callable[[Tensor], Tensor]:
    """The embedding that the network reads: its own, else the target's."""
    own: Callable[[Tensor], Tensor] | None = network.input_layer.embed_tokens
    return own or target_of(case, targets).embed


def growth_of(case: Case, targets: Targets, network: Any, rank_topk: int = 20) -> Any:
    """A round of the network behind an empty cache."""
    target = None if network.input_layer.embed_tokens else target_of(case, targets)
    steps = module("steps").BlockSteps(target, network, SlotCache(), rank_topk)
    growth = module("growth").BlockGrowth(steps)
    growth.begin(1)
    return growth


def tree_of(case: Case) -> Any:
    """The tree of the case's builder."""
    return build(_tree_node(case), "conf/recorded/specblock.yaml: tree")


def _tree_node(case: Case) -> dict[str, Any]:
    """How the tree is declared.

    Raises:
        ConfigError: its builder is not known.
    """
    data, known = case.data, _DECLARED.nodes["trees"]
    name = next((name for name in known if data["builder"].startswith(name)), None)
    if name is None:
        raise ConfigError(f"{case.name}: builder={data['builder']!r} is not known; known: {', '.join(known)}")
    node = {**_DECLARED.nodes["tree"], **known[name], "budget": data["node_budget"]}
    if "max_blocks" in data:
        node["max_blocks"] = data["max_blocks"]
    if "beam_width" in data:
        node.setdefault("first_width", data["beam_width"])
    return node


def drafter_of(case: Case, **settings: Any) -> Any:
    """The drafter of a case, not yet bound, with the tree of its builder."""
    node = {
        **_DECLARED.nodes["drafter"],
        "head": str(case.model_folder),
        "tree": _tree_node(case),
        **settings,
    }
    return build(node, "conf/recorded/specblock.yaml: drafter")
