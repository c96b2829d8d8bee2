"""One batch through the official training objective: every loss, every count, and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.conformance.case import Case, Check, Targets, close, equal
from harness.conformance.specblock.recording import RANK_TOLERANCE, embedding_of, module, network_of


def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare a batch, packed into one row, with the mask that the release trains with."""
    data, tensors, network = case.data, case.tensors, network_of(case).requires_grad_(True)
    embed = embedding_of(case, targets, network)
    (num_rows, length), ids = tensors["ids"].shape, tensors["ids"]
    goals, document = _goals(network, tensors), torch.arange(num_rows).repeat_interleave(length)
    places, rows = torch.arange(length).repeat(num_rows), torch.arange(num_rows * length)
    topk = data["draft_loss_topk"]
    recipe = module("training").SpecBlockRecipe(
        rank_budget=data["budget_per_class"],
        rank_topk=data.get("rank_features", 20),
        draft_loss_topk=topk if topk > 0 else None,
        num_blocks=data["num_blocks"],
        mask="released",
    )
    unrolling = module("training").Unrolling(network, document, places, rows, "released")
    weights = torch.tensor(data["slot_weights"])
    total, offset, found = torch.zeros(()), 0, []
    sums = torch.zeros(len(weights) + 1)
    outputs = unrolling.first(tensors["features"].flatten(0, 1), embed(_ahead(ids, 1)))
    for number, taken in enumerate([0, *data["M"]]):
        if number:
            offset += taken
            outputs = unrolling.later(outputs, taken, embed(_ahead(ids, 1 + offset)))
        loss = module("training").block_loss(network, outputs, rows, offset, goals, recipe, True)
        total = total + (loss.draft * weights).sum() + loss.rank
        sums = sums + torch.cat([loss.draft, loss.rank[None]]).detach()
        found += _block(f"block{number}", loss, tensors, data["blocks"][number])
    torch.autograd.backward(total)
    stated = torch.tensor(data["plosses"])
    return [
        *found,
        close("sums of losses", sums, stated, RANK_TOLERANCE),
        close("total", total.detach(), torch.tensor(data["total_loss"]), RANK_TOLERANCE),
        *_gradients(network, case),
    ]


def _block(name: str, loss: Any, tensors: dict[str, Tensor], stated: dict[str, Any]) -> list[Check]:
    return [
        close(f"{name}: draft", loss.draft.detach(), tensors[f"{name}.draft_losses"], RANK_TOLERANCE),
        close(f"{name}: rank", loss.rank.detach(), tensors[f"{name}.rank_loss"], RANK_TOLERANCE),
        equal(f"{name}: rows", [float(n) for n in loss.num_rows], stated["positions_in_valid_prefix"]),
    ]


def _gradients(network: Any, case: Case) -> list[Check]:
    named = dict(network.named_parameters())
    found = []
    for name, norm in case.data["gradient_norms_of_total"].items():
        found.append(close(f"gradient norm of {name}", named[name].grad.norm(), torch.tensor(norm), 1e-3))
    for key in (key for key in case.tensors if key.startswith("grad.")):
        ours = named[key.removeprefix("grad.")].grad
        found.append(close(key, ours, case.tensors[key], 1e-3))
    return found


def _ahead(ids: Tensor, count: int) -> Tensor:
    """[B * S]: the ids `count` places further on; 0 behind the end."""
    shifted = torch.zeros_like(ids)
    shifted[:, : ids.shape[1] - count] = ids[:, count:]
    return shifted.flatten()


def _goals(network: Any, tensors: dict[str, Tensor]) -> Any:
    """The target's distributions, and where the release counts them."""
    ids, logits = network.drafted_ids, tensors["target_logits"]
    ahead = torch.zeros_like(logits)
    ahead[:, :-1] = logits[:, 1:]
    inside = torch.isin(ahead.argmax(-1), ids)
    counts = inside & (tensors["loss_mask"] > 0)
    num_rows, length = counts.shape
    return module("goals").Goals(
        ahead[..., ids].softmax(-1).flatten(0, 1),
        torch.arange(num_rows * length),
        counts.flatten(),
        torch.arange(num_rows).repeat_interleave(length),
    )
