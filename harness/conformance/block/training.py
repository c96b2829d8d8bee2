"""Training batches: which slots count, what they are compared with, losses and gradients.

Shapes: A anchors, k drafted slots, D draft vocabulary.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.conformance.block.recording import module, network_of
from harness.conformance.case import Case, Check, Targets, close, equal

_LOSS_TOLERANCE = 5e-4


class _Text(NamedTuple):
    """A text of L tokens."""

    features: Tensor
    """[L, F]."""
    ids: Tensor
    """[L] int64."""
    supervised: Tensor
    """[L] bool."""


class _Batch(NamedTuple):
    """The drafted slots of one text."""

    labels: Any
    logits: Tensor
    """[A, k, D]."""
    confidence: Tensor | None
    """[A, k]."""


def deepspec_checks(case: Case, targets: Targets) -> list[Check]:
    """Two texts of DeepSpec's objective: a mean by decay weights over both of them."""
    network, settings = network_of(case), case.data["loss_settings"]
    network.requires_grad_(True)
    found: list[Check] = []
    sums: dict[str, Tensor] = {}
    for row in range(len(case.tensors["ids"])):
        compared, parts = _deepspec_text(case, network, row)
        found += compared
        sums = {name: sums.get(name, torch.zeros(())) + part for name, part in parts.items()}
    names = {"ce": "ce_loss_alpha", "l1": "l1_loss_alpha", "confidence": "confidence_head_alpha"}
    used = {name: settings[alpha] for name, alpha in names.items() if settings[alpha] and name in sums}
    total = torch.stack([share * sums[name] for name, share in used.items()]).sum()
    total = total / (sums["weights"] + 1e-6)
    total.backward()  # type: ignore[no-untyped-call]
    found += [_loss(name, sums[name], case.data["terms"][f"{name}_loss_num"]) for name in used]
    return [*found, _loss("loss", total, case.data["loss"]), *_gradients(case, network)]


def _deepspec_text(case: Case, network: Any, row: int) -> tuple[list[Check], dict[str, Tensor]]:
    """One of the texts: comparisons, and the weighted sums of its losses with the sum of the weights."""
    tensors, losses = case.tensors, module("losses")
    keep = tensors["block_keep_mask"][row].bool()
    text = _Text(tensors["features"][row], tensors["ids"][row], tensors["loss_mask"][row].bool())
    batch = _batch(network, None, text, tensors["anchor_positions"][row][keep])
    counts, labels = batch.labels.counts, batch.labels.tokens
    found = [
        equal(f"{row}: labels", labels[counts], tensors["label_ids"][row][keep][counts]),
        equal(f"{row}: slots that count", counts, tensors["eval_mask"][row][keep].bool()),
        close(f"{row}: logits", batch.logits.detach(), tensors["draft_logits"][row][keep]),
    ]
    # Their LM head is a trained copy, and the target's distribution takes part in the gradient.
    final = tensors["target_last_hidden"][row][batch.labels.places]
    goal = torch.softmax(network.logits(final, None).float(), dim=-1)
    gamma = case.data["loss_settings"]["loss_decay_gamma"]
    weights = losses.decay_weights(counts.shape[1], gamma, counts.device) * counts
    parts = {
        "ce": losses.LOSSES["ce"](batch.logits, labels, goal),
        # The L1 distance is twice the total variation.
        "l1": 2 * losses.LOSSES["tv"](batch.logits, labels, goal),
        "weights": torch.ones_like(weights),
    }
    if batch.confidence is not None:
        theirs = tensors["confidence_pred"][row][keep]
        found.append(close(f"{row}: confidence", batch.confidence.detach(), theirs))
        parts["confidence"] = losses.confidence_losses(batch.confidence, batch.logits, goal)
    return found, {name: (part * weights).sum() for name, part in parts.items()}


def _gradients(case: Case, network: Any) -> list[Check]:
    gradients = {name: one.grad for name, one in network.named_parameters() if one.grad is not None}
    padding = json.loads((case.model_folder / "config.json").read_text(encoding="utf-8"))["pad_token_id"]
    # Their embedding takes no gradient for the padding token, which is the mask token here.
    gradients["embed_tokens.weight"][padding] = 0
    found = []
    for name, norm in case.data["gradient_norms"].items():
        ours = gradients[name].norm() if name in gradients else torch.zeros(())
        found.append(_loss(f"norm of {name}", ours, norm))
    for name, theirs in case.tensors.items():
        if name.startswith("grad."):
            found.append(close(name, gradients[name.removeprefix("grad.")], theirs, _LOSS_TOLERANCE))
    return found


@torch.no_grad()
def speculators_checks(case: Case, targets: Targets) -> list[Check]:
    """A packed row of two documents under speculators' objective: a mean over the slots that count.

    Which slots count is recorded, because theirs do not end at the first one that does not: ours do.
    """
    tensors, data, verifier = case.tensors, case.data, targets.of(case)
    network, size = network_of(case), case.data["block_size"]
    first, valid = network.shape.first_slot, case.tensors["anchor_valid"].bool()

    def by_slot(name: str) -> Tensor:
        blocks = tensors[name][0].view(-1, size, *tensors[name].shape[2:])
        slots: Tensor = blocks[valid][:, first:]
        return slots

    batch = _batch(
        network,
        verifier,
        _Text(tensors["features"][0], tensors["ids"][0], tensors["loss_mask"][0].bool()),
        tensors["anchor_positions"][valid],
        tensors["document_ids"][0],
    )
    counts = by_slot("aligned_loss_mask").bool()
    final = verifier.model.get_decoder().norm(tensors["verifier_last_hidden"][0])
    drafted = network.target_ids(torch.arange(data["draft_vocab_size"]))
    goal = verifier.lm_head(final[batch.labels.places])[..., drafted]
    # Past the end of the row there is no token to compare with.
    inside = batch.labels.places + 1 < len(tensors["ids"][0])
    found = [
        close("logits", batch.logits[inside], by_slot("logits")[inside]),
        close("targets", goal[inside], by_slot("targets")[inside]),
    ]
    if batch.confidence is not None:
        found.append(close("confidence", batch.confidence[inside], by_slot("confidence_logits")[inside]))
    return [*found, *_speculators_losses(data, batch, goal, counts)]


def _speculators_losses(data: dict[str, Any], batch: _Batch, goal: Tensor, counts: Tensor) -> list[Check]:
    """Their terms: weighted sums, divided by the number of slots that count. goal: [A, k, D] logits."""
    losses, spec = module("losses"), data["loss_spec"]
    stated = json.loads(spec) if spec.startswith("{") else {spec: 1.0}
    shares = {name.removesuffix("_div"): share for name, share in stated.items()}
    probs, best = torch.softmax(goal, dim=-1), goal.argmax(-1)
    # Their cross-entropy is against the verifier's most probable token, not the text's.
    values = {name: losses.LOSSES[name](batch.logits, best, probs) for name in shares}
    if data["per_position_loss_weight"] == "dpace":
        weights = losses.length_weights((-values["ce"]).exp(), counts, data["dpace_alpha"])
    else:
        weights = losses.decay_weights(counts.shape[1], data["gamma"], counts.device) * counts
    if batch.confidence is not None:
        values["confidence"] = losses.confidence_losses(batch.confidence, batch.logits, probs)
        shares["confidence"] = 1.0
    terms = {name: (value * weights).sum() / counts.sum() for name, value in values.items()}
    found = [
        _loss(name, term, data["metrics"][f"{name}_loss_sum"])
        for name, term in terms.items()
        if f"{name}_loss_sum" in data["metrics"]
    ]
    total = torch.stack([share * terms[name] for name, share in shares.items()]).sum()
    return [*found, _loss("loss", total, data["loss"])]


def _batch(
    network: Any, target: Any, text: _Text, anchors: Tensor, documents: Tensor | None = None
) -> _Batch:
    first, size, ids = network.shape.first_slot, network.shape.block_size, text.ids
    labels = module("targets").labels_of(ids, anchors, size - first, text.supervised, documents)
    states = module("dense").states_of_blocks(
        network, target, text.features, ids[anchors], anchors, size, documents
    )
    logits, confidence = module("draw").corrected(network, target, states[:, first:], labels.previous)
    return _Batch(labels, logits, confidence)


def _loss(name: str, ours: Tensor, theirs: float) -> Check:
    return close(name, ours.detach(), torch.tensor(theirs), _LOSS_TOLERANCE)
