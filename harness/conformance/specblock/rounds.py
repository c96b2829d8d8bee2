"""Whole generations of the released loop, whose rows are not those of its training: see `ReleasedRows`."""

from __future__ import annotations

from typing import Any

import torch

from harness.conformance.case import Case, Check, Targets, close, equal
from harness.conformance.specblock.recording import RANK_TOLERANCE, drafter_of, target_of
from harness.conformance.specblock.trees import kept
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import Outcome


def checks(case: Case, targets: Targets) -> list[Check]:
    """Repeat the recorded rounds, then decode by our own loop with the release's rows and with ours."""
    target, found = target_of(case, targets), []
    drafter = _drafter(case, target, "released")
    drafter.reset(1)
    text = list(case.data["prompt_ids"])
    for number in range(len(case.data["rounds"])):
        found += _round(case, number, drafter, text)
    accepted = case.data["accept_lengths"]
    for rows in ("released", "aligned"):
        ids, ours = _decoded(case, _drafter(case, target, rows), target)
        found.append(equal(f"ids, {rows} rows", ids, case.data["greedy_ids"]))
        if rows == "released":
            found.append(equal("accepted", ours[:-1], accepted[: len(ours) - 1]))
        else:
            found.append(
                Check("aligned rows", True, f"{len(ours)} rounds of {len(accepted)} with aligned rows")
            )
    return found


def _drafter(case: Case, target: Any, rows: str) -> Any:
    drafter = drafter_of(case, rows=rows, rank_topk=case.data["rank_features"])
    drafter.bind(target)
    return drafter


def _round(case: Case, number: int, drafter: Any, text: list[int]) -> list[Check]:
    """One round; `text` grows by what enters the target's cache."""
    one, name, tensors = case.data["rounds"][number], f"round {number}", case.tensors
    features = tensors[f"r{number}.rows_features"]
    # The released loop feeds the last row of the prompt twice.
    num_new = features.shape[1] - (number == 0)
    drafter.observe(
        Outcome(
            committed=[text[-num_new:]],
            pending=[one["tree"]["tokens"][0]],
            taps=list(features[:, :num_new].chunk(len(drafter.taps), dim=-1)),
        )
    )
    network, slots = drafter.network, drafter.network.shape.num_slots
    draft = drafter.propose([len(one["tree"]["tokens"])])
    outputs = drafter.growth.outputs[:, 0]
    logits = network.logits(outputs)
    ranks = network.rank_logits(outputs, logits, case.data["rank_features"])
    if "emitted" in one:
        text += [one["tree"]["tokens"][0], *one["emitted"][: one["accept_length"]]]
    return [
        equal(f"{name}: slots after", int(drafter.growth.context * slots), one["cache_slots_after"]),
        equal(f"{name}: position", int(drafter.growth.base[0]), one["block2_base_position"]),
        close(f"{name}: logits", logits, tensors[f"r{number}.block1_logits"]),
        close(f"{name}: ranks", ranks, tensors[f"r{number}.block1_rank_logits"], RANK_TOLERANCE),
        kept(f"{name}: tree", draft, one["tree"]),
    ]


def _decoded(case: Case, drafter: Any, target: Any) -> tuple[list[int], list[int]]:
    """Our loop's ids, as many as are recorded, and what it accepted in each round."""
    wanted = case.data["greedy_ids"]
    engine = DecodingLoop(target, (), 1 << 30, timed=False)
    params = DecodingParams(name="greedy", max_new_tokens=len(wanted))
    with torch.no_grad():
        request = Request(prompt=case.data["prompt_ids"], key=0)
        made = engine.generate([request], drafter, params, Coupled())[0]
    return made.output_ids, made.accepted
