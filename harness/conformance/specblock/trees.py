"""Trees of the release's builders: their candidates, and those that are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.conformance.case import TOLERANCE, Case, Check, Targets, close, equal
from harness.conformance.specblock.recording import RANK_TOLERANCE, growth_of, network_of, tree_of

Path = tuple[int, ...]


@torch.no_grad()
def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare the first block, all candidates where they are recorded, and the tree."""
    network, tensors = network_of(case), case.tensors
    growth = growth_of(case, targets, network, case.data["rank_features"])
    growth.feed(tensors["features"], tensors["row_ids"], [tensors["row_ids"].shape[1]])
    policy, outputs = tree_of(case), growth.outputs[:, 0]
    logits = network.logits(outputs)
    ranks = network.rank_logits(outputs, logits, case.data["rank_features"])
    found = [
        close("first block: states", outputs, tensors["block1.hidden_pre_norm"]),
        close("first block: logits", logits, tensors["block1.logits"]),
        close("first block: rank logits", ranks, tensors["block1.rank_logits"], RANK_TOLERANCE),
    ]
    if "rank_class_block1" in case.data:
        found.append(
            equal("first block: classes", ranks[0].argmax(-1).tolist(), case.data["rank_class_block1"])
        )
    nodes = policy.candidates(growth)
    if "before_prune.tokens" in tensors:
        found += _candidates(nodes, tensors)
    return [*found, kept("tree", policy.pruned(nodes), case.data["tree"])]


def _candidates(nodes: Any, tensors: dict[str, Tensor]) -> list[Check]:
    real = (nodes.scores[0] > -torch.inf).nonzero()[:, 0].tolist()
    ours = _paths(nodes.tokens[0].tolist(), nodes.parents[0].tolist())
    theirs = _paths(tensors["before_prune.tokens"].tolist(), tensors["before_prune.parents"].tolist())
    scores, slots = nodes.scores[0].tolist(), nodes.slots[0].tolist()
    mine = sorted((ours[node], slots[node], scores[node]) for node in real)
    recorded = sorted(
        zip(
            theirs,
            tensors["before_prune.slot"].tolist(),
            tensors["before_prune.logprob"].tolist(),
            strict=True,
        )
    )
    same = equal("candidates: paths and slots", [one[:2] for one in mine], [one[:2] for one in recorded])
    if not same.passed:
        return [Check(same.name, False, f"{len(mine)} and {len(recorded)}")]
    found, wanted = (torch.tensor([one[2] for one in some]) for some in (mine, recorded))
    return [same, close("candidates: scores", found, wanted)]


def kept(name: str, draft: Any, recorded: dict[str, Any]) -> Check:
    """Compare a draft's paths with those of a recorded tree, whose first node is the pending token.

    A path that only one of them has must score as the least likely node that was kept.
    """
    size = int(draft.size[0])
    ours = _paths(draft.tokens[0, :size].tolist(), draft.parents[0, :size].tolist())
    parents = [parent - 1 for parent in recorded["parents"][1:]]
    theirs = set(_paths(recorded["tokens"][1:], parents))
    other = set(ours) ^ theirs
    if not other:
        return Check(name, True)
    scores = dict(zip(ours, draft.confidence[0, :size].log().tolist(), strict=True))
    least = min(scores.values())
    tied = len(set(ours)) == len(theirs) and all(
        scores[path] - least <= TOLERANCE for path in other & set(ours)
    )
    return Check(name, tied, f"{len(other)} nodes differ{' and tie' if tied else ''}")


def _paths(tokens: list[int], parents: list[int]) -> list[Path]:
    """The tokens from the pending one to every node; -1 is the pending token as a parent."""
    found: list[Path | None] = [None] * len(tokens)

    def path(node: int) -> Path:
        known = found[node]
        if known is None:
            known = (*(path(parents[node]) if parents[node] >= 0 else ()), tokens[node])
            found[node] = known
        return known

    return [path(node) for node in range(len(tokens))]
