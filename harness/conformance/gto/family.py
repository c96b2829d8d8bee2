"""The recorded cases of GTO, and the module that conf/recorded/gto.yaml declares for them.

Two kinds: rewards of single trees, and groups of trees of a drafter and its reference. The tables that the
groups' trees were grown from are not recorded, so that these are checked for what they say of each other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from harness.conformance.case import Case, Check, Targets, close, equal
from harness.conformance.declared import Declared
from harness.drafting.draft import TreeShape

_TOLERANCE = 1e-9
_ETA = "lse_eta"
_DECLARED = Declared("gto")


def claims(case: Case) -> bool:
    """Whether the case is one of this family."""
    return case.data.get("family") == "gto"


def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare a case.

    Raises:
        KeyError: a case of another layout.
    """
    rules: Any = _DECLARED.module("rules")
    if "positions" in case.data:
        return _group(rules, case.data)
    return [check for one in case.data["cases"] for check in _tree(rules, one["name"], one, one)]


def _tree(rules: Any, name: str, tree: dict[str, Any], recorded: dict[str, Any]) -> list[Check]:
    """Everything that is recorded about the worth of a tree."""
    shape, probs = _shape(tree["parents"]), _numbers(tree["target_prob"])[None]
    values = rules.tree_values(shape, probs)
    leaves = values.leaves[0].nonzero()[:, 0]
    found = [
        equal(f"{name}: leaves", leaves.tolist(), recorded["leaves"]),
        _near(f"{name}: path values", values.paths[0, leaves], recorded["path_value"]),
        _near(f"{name}: probabilities of nodes", values.reach[0], recorded["node_path_prob"]),
    ]
    for reward in (kind for kind in ("max", "mean", "node_sum") if kind in recorded):
        found.append(_near(f"{name}: {reward}", values.reward(reward)[0], recorded[reward]))
    for key in (key for key in recorded if key.startswith(_ETA)):
        eta = float(key.removeprefix(_ETA))
        found.append(_near(f"{name}: {key}", values.reward("lse", eta)[0], recorded[key]))
    if "expected_accepted_brute_force" in recorded:
        exact = recorded["expected_accepted_brute_force"]
        found.append(_near(f"{name}: expected accepted tokens", values.node_sum[0], exact))
    return found


def _group(rules: Any, data: dict[str, Any]) -> list[Check]:
    """The trees of a group, its ratios, and per reward the advantages, the loss and its gradient."""
    positions = data["positions"]
    found = []
    for number, one in enumerate(positions):
        for name in ("current", "reference"):
            found += _tree(rules, f"{number}: {name}", one[name], one[name]["reward"])
        found.append(_on_the_tree(f"{number}: accepted path", one))
    current, reference = (
        pad_sequence([_numbers(one[f"logp_{name}"]) for one in positions], batch_first=True)
        for name in ("current", "reference")
    )
    lengths = torch.tensor([len(one["accepted_path"]) for one in positions])
    recorded = torch.stack([_numbers(one["s"]) for one in positions])
    found.append(close("s", rules.ratios(current, reference, lengths), recorded, _TOLERANCE))
    kinds = [key for key in data if isinstance(data[key], dict) and "R" in data[key]]
    for kind in kinds:
        found += _objective(rules, kind, data, current, reference, lengths)
    return found


def _on_the_tree(name: str, position: dict[str, Any]) -> Check:
    """Whether the accepted path is one of the tree, with the log-probabilities of its nodes."""
    tree, accepted = position["current"], position["accepted_path"]
    known = {tuple(path): value for path, value in zip(tree["path"], tree["log_q"], strict=True)}
    prefixes = [tuple(accepted[: end + 1]) for end in range(len(accepted))]
    return equal(name, [known.get(prefix) for prefix in prefixes], position["logp_current"])


def _objective(
    rules: Any, kind: str, data: dict[str, Any], current: Tensor, reference: Tensor, lengths: Tensor
) -> list[Check]:
    recorded, settings = data[kind], data["settings"]
    rewards = [
        torch.stack([_reward(rules, kind, one[name]) for one in data["positions"]])
        for name in ("current", "reference")
    ]
    gains = rewards[0] - rewards[1]
    found = [
        _near(f"{kind}: R", gains, recorded["R"]),
        _near(f"{kind}: mean", gains.mean(), recorded["mean"]),
    ]
    for ddof in (ddof for ddof in (0, 1) if f"ddof{ddof}" in recorded):
        one, name = recorded[f"ddof{ddof}"], f"{kind}, ddof {ddof}"
        wanted = current.clone().requires_grad_(True)
        advantages = rules.advantages(gains[None], settings["delta"], ddof)
        ratios = rules.ratios(wanted, reference, lengths)
        loss = rules.surrogate(ratios, advantages[0], settings["eps"]).mean()
        loss.backward()
        gradient = wanted.grad
        assert gradient is not None
        kept = [part[:length] for part, length in zip(gradient, lengths.tolist(), strict=True)]
        gained = pad_sequence([_numbers(part) for part in one["dloss_dlogp_current"]], batch_first=True)
        found += [
            _near(f"{name}: std", gains.std(correction=ddof), one["std"]),
            _near(f"{name}: advantages", advantages[0], one["advantages"]),
            _near(f"{name}: loss", loss.detach(), one["loss"]),
            close(f"{name}: gradient", pad_sequence(kept, batch_first=True), gained, _TOLERANCE),
        ]
    return found


def _reward(rules: Any, kind: str, tree: dict[str, Any]) -> Tensor:
    """The reward of a tree; kind: as cases name it, with eta."""
    values = rules.tree_values(_shape(tree["parents"]), _numbers(tree["target_prob"])[None])
    name, eta = ("lse", float(kind.removeprefix(_ETA))) if kind.startswith(_ETA) else (kind, 1.0)
    reward: Tensor = values.reward(name, eta)[0]
    return reward


def _shape(parents: list[int]) -> TreeShape:
    return TreeShape(parents=torch.tensor(parents)[None], size=torch.tensor([len(parents)]))


def _numbers(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _near(name: str, ours: Tensor, theirs: Any) -> Check:
    """Compare float64 numbers."""
    return close(name, ours, _numbers(theirs), _TOLERANCE)
