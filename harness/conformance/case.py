"""A recorded case, its models, and how numbers and trees are compared.

Shapes: T nodes of a tree with the pending token as node 0, D its levels with node 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from harness.config import build
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, HiddenTap, Outcome, TargetView
from harness.target.model import Target

TOLERANCE = 1e-4
"""Absolute and relative, float32 against float32; also what counts as an exact tie of scores."""


class Check(NamedTuple):
    """One comparison. note: what differs, or how close it is."""

    name: str
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class Case:
    """A JSON file and the tensors beside it. root: what `target_dir` and `head_dir` are relative to."""

    file: Path
    root: Path
    kind: str
    data: dict[str, Any]

    @property
    def name(self) -> str:
        """Path below the root, without the ending."""
        return self.file.relative_to(self.root).with_suffix("").as_posix()

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The recorded tensors."""
        tensors: dict[str, Tensor] = load_file(self.file.parent / self.data["tensors"])
        return tensors


def read_case(file: Path, root: Path, kind: str) -> Case:
    """The case of a JSON file."""
    return Case(file=file, root=root, kind=kind, data=json.loads(file.read_text(encoding="utf-8")))


@dataclass
class Pairs:
    """Targets, loaded once each."""

    _targets: dict[Path, Target] = field(default_factory=dict)

    def target(self, case: Case) -> Target:
        """The case's target, in the case's dtype.

        Raises:
            OSError: it cannot be loaded.
        """
        folder = (case.root / case.data["target_dir"]).resolve()
        if folder not in self._targets:
            dtype = getattr(torch, case.data.get("dtype", "float32"))
            # Plain transformers: a case has token ids, so its target needs no tokenizer.
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
            self._targets[folder] = Target(model.eval().requires_grad_(False))
        return self._targets[folder]

    def drafter(self, case: Case, tree: str = "harness.drafting.trees.DynamicTree") -> Drafter:
        """The case's head with its tree, bound to its target. tree: class of the policy."""
        drafter: Drafter = build(
            {
                "_target_": "methods.eagle.Eagle",
                "architecture": "eagle3" if case.data["use_eagle3"] else "eagle",
                "head": str((case.root / case.data["head_dir"]).resolve()),
                "tree": {
                    "_target_": tree,
                    **{name: case.data[name] for name in ("total_token", "depth", "top_k")},
                },
            },
            "drafter",
        )
        drafter.bind(self.target(case))
        return drafter


class Witness(Drafter):
    """Passes everything on to a drafter and keeps what went by: outcomes, and what the tree grew from."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.outcomes: list[Outcome] = []
        self.drafts: list[Draft] = []
        self.roots: list[tuple[Tensor, Tensor]] = []
        """Per draft the head's state [B, H] and logits [B, V] after the pending token."""

    @property
    def taps(self) -> tuple[HiddenTap, ...]:
        """See `Drafter`."""
        taps: tuple[HiddenTap, ...] = self.inner.taps
        return taps

    def bind(self, target: TargetView) -> None:
        """See `Drafter`; the inner one is bound already."""

    def reset(self, num_rows: int) -> None:
        """See `Drafter`."""
        self.inner.reset(num_rows)

    def observe(self, outcome: Outcome) -> None:
        """See `Drafter`."""
        self.outcomes.append(outcome)
        self.inner.observe(outcome)

    def propose(self, room: Sequence[int]) -> Draft:
        """See `Drafter`."""
        draft: Draft = self.inner.propose(room)
        self.drafts.append(draft)
        self.roots.append((self.inner.growth.state, self.inner.growth.logits))
        return draft

    def keep(self, rows: Sequence[int]) -> None:
        """See `Drafter`."""
        self.inner.keep(rows)


@dataclass(frozen=True)
class OfficialTree:
    """One sequence's draft in the official numbering: node 0 is the pending token.

    tokens [T], positions [T] (depths), mask [T, T]; paths: per leaf the nodes from 0 on, ascending by leaf.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    paths: list[list[int]]

    def retrieve(self, ordered: bool = False) -> Tensor:
        """The paths [leaves, D], padded with -1; `ordered` as the official code does to sample."""
        width = max(map(len, self.paths))
        far = len(self.tokens) + 1
        rows = (
            sorted(self.paths, key=lambda path: path + [far] * (width - len(path))) if ordered else self.paths
        )
        return torch.tensor([path + [-1] * (width - len(path)) for path in rows])

    def token_paths(self) -> set[tuple[int, ...]]:
        """The tree as a set of token paths, whatever its numbering."""
        return {tuple(self.tokens[row.nonzero()[:, 0]].tolist()) for row in self.mask.bool()}


def official_tree(draft: Draft, pending: int) -> OfficialTree:
    """The first sequence of `draft` as the official code lays it out."""
    size = int(draft.size[0])
    tokens = torch.cat([torch.tensor([pending]), draft.tokens[0, :size].cpu()])
    mask = torch.ones(size + 1, size + 1, dtype=torch.bool).tril()
    mask[1:, 1:] = draft.ancestors[0, :size, :size].cpu()
    parents = set((draft.parents[0, :size] + 1).tolist())
    leaves = [node for node in range(size + 1) if node not in parents]
    paths = [mask[leaf].nonzero()[:, 0].tolist() for leaf in leaves]
    return OfficialTree(tokens, mask.sum(-1) - 1, mask, paths)


def equal(name: str, ours: Any, theirs: Any) -> Check:
    """Exactly the same."""
    if isinstance(ours, Tensor):
        same = ours.shape == theirs.shape and bool((ours.to(theirs.dtype) == theirs).all())
        return Check(name, same, "" if same else "differs")
    return Check(name, ours == theirs, "" if ours == theirs else f"{ours} instead of {theirs}")


def close(name: str, ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> Check:
    """The same within the tolerance, absolute and relative."""
    if ours.shape != theirs.shape:
        return Check(name, False, f"shape {list(ours.shape)} instead of {list(theirs.shape)}")
    ours, theirs = ours.double().cpu(), theirs.double()
    gap = float((ours - theirs).abs().max()) if theirs.numel() else 0.0
    passed = bool(torch.isclose(ours, theirs, rtol=tolerance, atol=tolerance).all())
    return Check(name, passed, "" if passed else f"off by {gap:.2g}")
