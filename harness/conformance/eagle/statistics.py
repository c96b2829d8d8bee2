"""Statistics cases: the first three tokens of many sampled runs, against their exact joint distribution."""

from __future__ import annotations

from harness.conformance.case import Case, Check, Targets, close
from harness.conformance.eagle.recording import recorded_drafter
from harness.conformance.statistics import LEAST_P, NUM_TOKENS, SEEDS, chi_square_p, exact_joint, sample
from harness.decoding.acceptance import Coupled, Rejection
from harness.decoding.sampling import DecodingParams


def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare our exact distribution with the recorded one, and samples of both acceptors with it."""
    data, target = case.data, targets.of(case)
    params = DecodingParams(
        name="sampled",
        temperature=data["temperature"],
        top_p=data["sampling_top_p"] or 1.0,
        top_k=data["sampling_top_k"],
        filter_order="eagle",
        max_new_tokens=NUM_TOKENS,
        ignore_end_token=True,
    )
    joint = case.tensors["exact_joint"]
    result = [close("joint distribution", exact_joint(target, data["prompt_ids"], params), joint, 1e-5)]
    drafter = recorded_drafter(case, target)
    for acceptor in (Coupled(), Rejection()):
        p = 0.0
        for seed in SEEDS:
            counts = sample(target, drafter, acceptor, data["prompt_ids"], params, seed)
            p = chi_square_p(counts.flatten(), joint.flatten())
            if p > LEAST_P:
                break
        result.append(Check(acceptor.name, p > LEAST_P, f"{acceptor.name} p = {p:.2g}"))
    return result
