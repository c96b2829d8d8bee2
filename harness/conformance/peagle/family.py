"""P-EAGLE: the rows of a training sample without a cache, and a drafting call of the drafter itself."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from harness.config import build
from harness.conformance.case import Case, Check, Targets, close, equal
from harness.drafting.drafter import Outcome

_FILE = files("conf") / "recorded" / "peagle.yaml"


def claims(case: Case) -> bool:
    """Whether the case is one of this family."""
    return case.data.get("family") == "peagle"


@torch.no_grad()
def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare a case."""
    target, tensors, data = targets.of(case), case.tensors, case.data
    given = OmegaConf.create(
        {
            "case": {
                "head": str(case.model_folder),
                "num_depths": data["num_depths"],
            }
        }
    )
    declared: Any = OmegaConf.merge(given, OmegaConf.create(_FILE.read_text(encoding="utf-8")))
    drafter = build(declared.drafter, "conf/recorded/peagle.yaml: drafter")
    drafter.bind(target)
    sample = _unrolled(case, drafter, target, "train")
    found = [
        equal("mask token", drafter.mask, data["mask_token_id"]),
        close("training sample", drafter.network.logits(sample, target), tensors["train.logits"]),
    ]
    # The token of a pair follows its feature, so the pending token is the last pair's.
    num_rows = data["draft_rows"]
    tokens = tensors["ids"][0, :num_rows].tolist()
    taps = tensors["features"][:, :num_rows].chunk(drafter.network.shape.num_taps, dim=-1)
    drafter.reset(1)
    drafter.observe(Outcome(committed=[[0, *tokens[:-1]]], pending=[tokens[-1]], taps=list(taps)))
    draft = drafter.propose([data["num_depths"]])
    return [
        *found,
        close("logits of a draft", drafter.logits, tensors["draft.logits"]),
        equal("tokens", draft.tokens[0].tolist(), data["drafted_target_ids"]),
    ]


def _unrolled(case: Case, drafter: Any, target: Any, part: str) -> Tensor:
    """States [1, n, H] of rows at some depth behind their anchors.

    A row sees the true pairs up to its anchor, and the rows of its own rollout up to itself.
    """
    anchor, depth = (case.tensors[f"{part}.{name}"] for name in ("anchor_pos", "depth"))
    masked = (depth > 0)[None]
    features, ids = case.tensors["features"][:, anchor], case.tensors["ids"][:, anchor]
    tokens = torch.where(masked, drafter.mask, ids)
    true_pair = (depth == 0) & (anchor <= anchor[:, None])
    own = (anchor == anchor[:, None]) & (depth <= depth[:, None])
    mask = true_pair | own

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return output.transpose(1, 2)

    states: Tensor = drafter.network(features, tokens, masked, (anchor + depth)[None], target, attend)
    return states
