"""Greedy cases: ids, accepted lengths, trees, features and scores of the official code."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from harness.config import build, configurable
from harness.conformance.case import TOLERANCE, Case, Check, Targets, close, equal
from harness.conformance.eagle.recording import (
    OfficialTree,
    RecordingDrafter,
    official_tree,
    recorded_drafter,
)
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Generation, Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft
from harness.drafting.drafter import Outcome
from harness.drafting.trees import DynamicTree, Pool

_NO_LIMIT = 1 << 30


@configurable
class RecordedTree(DynamicTree):
    """EAGLE-2's tree, which also keeps its candidates."""

    @override
    def rerank(self, pool: Pool) -> Draft:
        self.pools: list[Pool] = [*getattr(self, "pools", []), pool]
        return DynamicTree.rerank(self, pool)


def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare a case."""
    data, target = case.data, targets.of(case)
    drafter = recorded_drafter(case, target, "harness.conformance.eagle.greedy.RecordedTree")
    recorder = RecordingDrafter(drafter)
    request = Request(prompt=data["prompt_ids"], key=0)
    eos = {data["eos_token_id"]} if data.get("eos_token_id") is not None else set()
    # Long enough for the official stop rule to decide, and not ours.
    enough = data["max_new_tokens"] + 3 * (data["depth"] + 2) + 1
    endless = DecodingParams(name="endless", max_new_tokens=enough, ignore_end_token=True)
    engine = DecodingLoop(target, eos, _NO_LIMIT, timed=False)
    made = engine.generate([request], recorder, endless, Coupled())[0]
    result = [*_vanilla(case, engine, request), *_emulated(case, made, recorder, eos)]
    number = 0
    while f"r{number}.draft_tokens" in case.tensors:
        if number < len(recorder.drafts):
            result += _round(case, number, recorder, drafter)
        else:
            result.append(Check(f"round {number}", False, "was not reached"))
        number += 1
    if data["max_new_tokens"] < 1:
        # Our loop has no request without tokens; what the official code does then was compared above.
        return result
    limit = DecodingParams(name="limited", max_new_tokens=data["max_new_tokens"])
    ours = engine.generate([request], drafter, limit, Coupled())[0]
    return [*result, *_own_rule(data, ours)]


def _vanilla(case: Case, engine: DecodingLoop, request: Request) -> list[Check]:
    """Plain decoding, which the official code runs one token longer than asked."""
    data, vanilla = case.data, build({"_target_": "methods.vanilla.Vanilla"}, "vanilla")
    vanilla.bind(engine.target)
    expected = data["naive"]["output_ids"][len(data["prompt_ids"]) :]
    params = DecodingParams(name="naive", max_new_tokens=max(len(expected), 1))
    made = engine.generate([request], vanilla, params, Coupled())[0]
    result = [equal("plain ids", made.output_ids[: len(expected)], expected)]
    if "prefill_logits_last" in case.tensors:
        engine.target.begin(1)
        logits, _ = engine.target.prefill([0], [request.prompt])
        result.append(close("prefill logits", logits, case.tensors["prefill_logits_last"]))
    return result


def official_rounds(
    data: dict[str, Any], output: Sequence[int], accepted: Sequence[int], eos: set[int]
) -> int:
    """The number of rounds after which the official code would have stopped.

    It checks after each round for an end token among the new ids, more ids than asked for, or a sequence
    longer than max_length - (total_token - 1) - 10 (EAGLE repository, `cb7e084`, `eagenerate`).
    """
    limit = data["max_length"] - (data["total_token"] - 1) - 10
    num_new = 0
    for number, length in enumerate(accepted, start=1):
        num_new += length + 1
        ended = bool(eos & set(output[:num_new]))
        if ended or num_new > data["max_new_tokens"] or len(data["prompt_ids"]) + num_new > limit:
            return number
    return len(accepted)


def _emulated(case: Case, made: Generation, recorder: RecordingDrafter, eos: set[int]) -> list[Check]:
    """The whole run under the official stop rule."""
    data, expected = case.data, case.data["eagle"]
    rounds = official_rounds(data, made.output_ids, made.accepted, eos)
    accepted = made.accepted[:rounds]
    num_new = sum(accepted) + rounds
    ends = [sum(accepted[:number]) + number for number in range(1, rounds + 1)]
    best = [
        best_row(official_tree(draft, 0), outcome)
        for draft, outcome in zip(recorder.drafts, recorder.outcomes[1 : rounds + 1], strict=False)
    ]
    return [
        equal("ids", [*data["prompt_ids"], *made.output_ids[:num_new]], expected["output_ids"]),
        equal("new_token", num_new, expected["new_token"]),
        equal("idx", rounds - 1, expected["idx"]),
        equal("accepted lengths", accepted, expected["accept_lengths"]),
        equal("bonus tokens", [made.output_ids[end] for end in ends], expected["bonus_tokens"]),
        equal("best rows", best, expected["best_candidates"]),
    ]


def best_row(tree: OfficialTree, outcome: Outcome) -> int:
    """The first row of the retrieve indices with the longest match, as the official code counts rows."""
    assert outcome.logits is not None
    best = outcome.logits[0].argmax(-1).tolist()
    tokens = tree.tokens.tolist()
    lengths = []
    for path in tree.paths:
        hits = [best[before] == tokens[node] for before, node in pairwise(path)]
        lengths.append(hits.index(False) if False in hits else len(hits))
    return lengths.index(max(lengths))


def _round(case: Case, number: int, recorder: RecordingDrafter, drafter: Any) -> list[Check]:
    """One recorded draft: the head's input and output, the candidates, the tree, the target's logits."""

    def recorded(name: str) -> Tensor:
        return case.tensors[f"r{number}.{name}"]

    outcome, draft = recorder.outcomes[number], recorder.drafts[number]
    pool: Pool = drafter.tree.pools[number]
    label = f"round {number}"
    state, logits = recorder.roots[number]
    so_far = [*case.data["prompt_ids"], *_output_so_far(recorder, number)]
    result = [
        close(f"{label} features", torch.cat(outcome.taps, -1), recorded("head_input_hidden")),
        equal(f"{label} ids", [so_far], recorded("head_input_ids").tolist()),
        close(f"{label} head state", state, recorded("head_out_hidden_last")),
        close(f"{label} head logits", logits, recorded("head_logits_last")),
    ]
    tree = official_tree(draft, outcome.pending[0])
    diagnostics = (case.data.get("tie_diagnostics") or [])[number : number + 1]
    gaps = {
        name: gap
        for one in diagnostics
        for name, gap in one.items()
        if name.startswith("gap_") and gap is not None
    }
    result += _tree(case, number, tree, pool, drafter.tree.select(pool)[0], gaps)
    same = torch.equal(tree.tokens[None], recorded("draft_tokens"))
    key = f"r{number}.node_target_argmax"
    if key in case.tensors and same and number + 1 < len(recorder.outcomes):
        verified = recorder.outcomes[number + 1].logits
        assert verified is not None
        best = verified[0].topk(2, dim=-1)
        margin = best.values[:, 0] - best.values[:, 1]
        clear = recorded("node_target_margin") > 2 * TOLERANCE
        result += [
            equal(f"{label} target argmax", best.indices[clear, 0], recorded("node_target_argmax")[clear]),
            close(f"{label} target margin", margin, recorded("node_target_margin")),
        ]
    return result


def _tree(
    case: Case, number: int, tree: OfficialTree, pool: Pool, chosen: Tensor, gaps: dict[str, float]
) -> list[Check]:
    """Candidates and tree, exactly; where that fails and scores tie, whatever a tie cannot change."""

    def recorded(name: str) -> Tensor:
        return case.tensors[f"r{number}.{name}"]

    label = f"round {number}"
    exact = [
        close(f"{label} candidate scores", pool.scores[0], recorded("cand_scores")),
        equal(f"{label} candidate tokens", pool.tokens[0], recorded("cand_tokens")),
        equal(f"{label} selected", chosen, recorded("selected")),
        close(f"{label} node scores", pool.scores[0, chosen], recorded("node_logprob")),
        equal(f"{label} draft tokens", tree.tokens[None], recorded("draft_tokens")),
        equal(f"{label} positions", tree.positions, recorded("tree_position_ids")),
        equal(f"{label} mask", tree.mask[None, None], recorded("tree_mask")),
        equal(f"{label} retrieve indices", tree.retrieve(), recorded("retrieve_indices")),
    ]
    if all(check.passed for check in exact) or min(gaps.values(), default=1.0) >= TOLERANCE:
        return exact
    scores = recorded("node_logprob")
    mask = recorded("tree_mask")[0, 0].bool()
    theirs = OfficialTree(recorded("draft_tokens")[0], recorded("tree_position_ids"), mask, [])
    sure = {
        path
        for path, score in zip(_paths(theirs), [0.0, *scores.tolist()], strict=True)
        if score > float(scores.min()) + TOLERANCE
    }
    missing = sure - tree.token_paths()
    note = f"tie in {label}" if not missing else f"{len(missing)} nodes above the cut are missing"
    return [
        Check(f"{label} tree up to ties", not missing, note),
        # The nodes differ only where scores are equal, so the sorted scores do not.
        close(f"{label} sorted node scores", pool.scores[0, chosen].sort().values, scores.sort().values),
    ]


def _paths(tree: OfficialTree) -> list[tuple[int, ...]]:
    """Token path of every node, in the order of their numbers."""
    return [tuple(tree.tokens[row.nonzero()[:, 0]].tolist()) for row in tree.mask]


def _output_so_far(recorder: RecordingDrafter, number: int) -> list[int]:
    """Output ids up to and with the pending token of draft `number`."""
    rounds = recorder.outcomes[1 : number + 1]
    return [*(token for one in rounds for token in one.committed[0]), recorder.outcomes[number].pending[0]]


def _own_rule(data: dict[str, Any], ours: Generation) -> list[Check]:
    """Our own end: accepted lengths over the rounds that both made, ids over the prefix that both have."""
    theirs = data["eagle"]
    common = min(len(ours.accepted), len(theirs["accept_lengths"]))
    ids = theirs["output_ids"][len(data["prompt_ids"]) :]
    shared = min(len(ours.output_ids), len(ids))
    return [
        equal("accepted, own end", ours.accepted[:common], theirs["accept_lengths"][:common]),
        equal("ids, own end", ours.output_ids[:shared], ids[:shared]),
    ]
