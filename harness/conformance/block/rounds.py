"""Whole generations of z-lab's and DeepSpec's loops: every round's states, logits, tokens and verdict."""

from __future__ import annotations

from itertools import takewhile
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from harness.conformance.block.recording import drafter_of, module, noise_for
from harness.conformance.case import Case, Check, Targets, close, equal
from harness.decoding.acceptance import Coupled, Rejection
from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft
from harness.drafting.drafter import Outcome


def checks(case: Case, targets: Targets) -> list[Check]:
    """Replay the recorded rounds through the drafter and its cache; at T = 0 also decode by our own loop."""
    target = targets.of(case)
    drafter = drafter_of(case, **_settings(case.data))
    drafter.bind(target)
    drafter.reset(1)
    text, found = list(case.data["prompt_ids"]), []
    for number in range(len(case.data["rounds"])):
        found += _round(case, number, drafter, target, text)
    return found + (_decoded(case, drafter, target) if case.data["temperature"] == 0 else [])


def _settings(data: dict[str, Any]) -> dict[str, Any]:
    if data.get("confidence_threshold"):
        return {"confidence_threshold": data["confidence_threshold"]}
    if "block_size_used" in data:
        return {"draft_length": data["block_size_used"] - (not data["sample_from_anchor"])}
    return {}


def _round(case: Case, number: int, drafter: Any, target: Any, text: list[int]) -> list[Check]:
    """One round; `text` grows by what enters the target's cache."""
    one, name = case.data["rounds"][number], f"round {number}"
    tensors = {
        key.removeprefix(f"r{number}."): value
        for key, value in case.tensors.items()
        if key.startswith(f"r{number}.")
    }
    features, network = tensors["context_features"], drafter.network
    num_new, verify = features.shape[1], one["verify_ids"]
    drafter.observe(
        Outcome(
            committed=[text[-num_new:]],
            pending=[verify[0]],
            taps=list(features.chunk(len(network.shape.tap_layers), dim=-1)),
        )
    )
    draft = drafter.propose([len(one["drafted"])])
    states, drawn = drafter.states[:, network.shape.first_slot :], drafter.drawn
    temperature = case.data["temperature"] if "draft_probs" in tensors else 0.0
    if temperature:
        anchor, tokens = torch.tensor([verify[0]]), torch.tensor([one["drafted"]])
        noise = noise_for(network, target, states, anchor, temperature, tokens)
        drawn = module("draw").draw(network, target, states, anchor, temperature, noise)
    found = [
        close(f"{name}: states", drafter.states, tensors["block_hidden"]),
        equal(f"{name}: tokens", drawn.tokens[0].tolist(), one["drafted"]),
    ]
    if "proposed" in one and not temperature:
        found.append(equal(f"{name}: proposed", draft.tokens[0, : int(draft.size[0])].tolist(), verify[1:]))
    recorded = {
        "draft_logits": drawn.logits,
        "base_logits": network.logits(states, target),
        "corrected_logits": drawn.logits,
        "draft_probs": drawn.probs,
    }
    found += [close(f"{name}: {key}", recorded[key], tensors[key]) for key in recorded if key in tensors]
    if "confidence_logits" in tensors:
        confidence = tensors["confidence_logits"]
        if drawn.confidence is None:
            found.append(Check(f"{name}: confidence", False, "the head has none"))
        else:
            ours = drawn.confidence[:, : confidence.shape[1]]
            found.append(close(f"{name}: confidence", ours, confidence))
    if "accept_uniforms" in tensors:
        found.append(equal(f"{name}: accepted", _accepted(tensors, drawn, verify), one["accepted"]))
    text += verify[: 1 + _num_kept(one, verify)]
    return found


def _num_kept(one: dict[str, Any], verify: list[int]) -> int:
    """Drafted tokens that stay; z-lab's loop states what the target chose instead."""
    if "accepted" in one:
        return int(one["accepted"])
    chosen = zip(verify[1:], one["target_choice_per_position"], strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], chosen)))


def _accepted(tensors: dict[str, Tensor], drawn: Any, verify: list[int]) -> int:
    """What our p/q rule keeps of a recorded draft, with the recorded uniform numbers."""
    size = len(verify) - 1
    uniforms = iter(tensors["accept_uniforms"][0].tolist())
    scripted = SimpleNamespace(random=lambda: next(uniforms), choice=lambda count, p: 0)
    sampler: Any = SimpleNamespace(
        params=SimpleNamespace(probs=lambda logits: logits), generator=lambda row, position: scripted
    )
    chain = Draft.chain(drawn.tokens[:, :size], torch.tensor([size]))
    draft = Draft(
        tokens=chain.tokens,
        parents=chain.parents,
        size=chain.size,
        is_chain=True,
        probs=drawn.probs[:, :size],
    )
    return int(Rejection().accept(tensors["target_probs"], draft, sampler, torch.tensor([0])).length[0])


def _decoded(case: Case, drafter: Any, target: Any) -> list[Check]:
    """The same generation by our loop.

    The official loops may run one round more than the limit needs; the last round may be cut by the limit.
    """
    data = case.data
    engine = DecodingLoop(target, set(data["stop_token_ids"]), 1 << 30, timed=False)
    params = DecodingParams(name="greedy", max_new_tokens=data["max_new_tokens"])
    request = Request(prompt=data["prompt_ids"], key=0)
    made = engine.generate([request], drafter, params, Coupled())[0]
    output = data["output_ids"][len(data["prompt_ids"]) :]
    if "accepted_draft_lengths" in data:
        accepted = data["accepted_draft_lengths"]
    else:
        accepted = [count - 1 for count in data["tokens_per_round"]]
    rounds = len(made.accepted)
    return [
        equal("ids", made.output_ids, output),
        Check("rounds", rounds in (len(accepted), len(accepted) - 1), f"{rounds} and {len(accepted)}"),
        equal("accepted", made.accepted[:-1], accepted[: rounds - 1]),
    ]
