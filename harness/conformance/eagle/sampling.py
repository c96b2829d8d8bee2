"""Sampled cases: official decisions on recorded draws, the distributions behind them, and our two rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.conformance.case import Case, Check, Targets, close, equal
from harness.conformance.eagle.recording import RecordingDrafter, official_tree, recorded_drafter
from harness.conformance.statistics import LEAST_P, SEEDS, chi_square_p
from harness.decoding.acceptance import Accepted, Acceptor, Coupled, Rejection
from harness.decoding.sampling import DecodingParams, TokenSampler, stream_key
from harness.drafting.draft import Draft
from harness.drafting.drafter import Outcome
from harness.target.model import Target

_PROBS_TOLERANCE = 1e-5
_NUM_DRAWS = 4000
_CHUNK = 500


@dataclass
class RecordedDraws:
    """Stands for a random generator: gives recorded numbers, and keeps the last token's distribution."""

    draws: list[float]
    drawn: int
    """The token that the recorded run drew last."""
    probs: Tensor = field(default_factory=lambda: torch.empty(0))

    def random(self) -> float:
        """The next recorded number."""
        return self.draws.pop(0)

    def choice(self, num_tokens: int, p: Any) -> int:
        """The token that was drawn."""
        self.probs = torch.from_numpy(np.asarray(p))
        return self.drawn


class RecordedChooser:
    """Stands for a `TokenSampler` whose generator is recorded."""

    def __init__(self, params: DecodingParams, draws: RecordedDraws) -> None:
        self.params, self.draws = params, draws

    def generator(self, row: int, position: int) -> RecordedDraws:
        """The recorded numbers, whatever the place."""
        return self.draws


def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare a case."""
    data, recorded, target = case.data, case.tensors, targets.of(case)
    params = DecodingParams(name="sampled", temperature=data["temperature"])
    recorder = RecordingDrafter(recorded_drafter(case, target))
    target.set_taps(recorder.taps)
    target.begin(1)
    recorder.reset(1)
    logits, states = target.prefill([0], [data["prompt_ids"]])
    result = _first_distributions(data, recorded, logits[0], params)
    pending = data_output(data)[0]
    recorder.observe(
        Outcome(committed=[data["prompt_ids"]], pending=[pending], taps=[s[None] for s in states[0]])
    )
    for number in range(data["recorded_rounds"]):
        draft = recorder.propose([1 << 30])
        verified = target.verify(torch.tensor([pending]), draft)
        result += _round(case, number, draft, verified, pending, params)
        # We follow the recorded run, whatever we would have drawn.
        recorded_round = data["rounds"][number]
        path = _row(case, number, recorded_round)[1:]
        accepted = Accepted(
            torch.tensor([len(path)]), _path(path, draft), torch.tensor([recorded_round["bonus_token"]])
        )
        _follow(target, recorder, draft, verified, accepted, pending)
        pending = recorded_round["bonus_token"]
    return result


def data_output(data: dict[str, Any]) -> list[int]:
    """Output ids without the prompt."""
    output: list[int] = data["output_ids"][len(data["prompt_ids"]) :]
    return output


def _first_distributions(
    data: dict[str, Any], recorded: dict[str, Tensor], logits: Tensor, params: DecodingParams
) -> list[Check]:
    result = [
        close("root logits", logits, recorded["root_logits"]),
        close("root distribution", params.probs(logits), recorded["root_probs"], _PROBS_TOLERANCE),
    ]
    for name in recorded:
        if not name.startswith("root_probs_T"):
            continue
        filters = data["filtered_distribution"]
        filtered = DecodingParams(
            name="filtered",
            temperature=filters["temperature"],
            top_p=filters["top_p"],
            top_k=filters["top_k"],
            filter_order="eagle",
        )
        result.append(
            close("filtered distribution", filtered.probs(logits), recorded[name], _PROBS_TOLERANCE)
        )
    return result


def _row(case: Case, number: int, recorded_round: dict[str, Any]) -> list[int]:
    """Nodes of the accepted path in the recorded numbering, the pending token first."""
    row: list[int] = case.tensors[f"s{number}.retrieve_indices"][recorded_round["best_candidate"]].tolist()
    return row[: recorded_round["accept_length"] + 1]


def _path(nodes: list[int], draft: Draft) -> Tensor:
    """Nodes of the official numbering as a path [1, n] of ours."""
    path = torch.zeros(1, draft.width, dtype=torch.int64)
    path[0, : len(nodes)] = torch.tensor(nodes, dtype=torch.int64) - 1
    return path


def _round(
    case: Case, number: int, draft: Draft, verified: Tensor, pending: int, params: DecodingParams
) -> list[Check]:
    recorded_round, label = case.data["rounds"][number], f"round {number}"

    def recorded(name: str) -> Tensor:
        return case.tensors[f"s{number}.{name}"]

    tree = official_tree(draft, pending)
    retrieve = tree.retrieve(ordered=True)
    sentinel = torch.cat([tree.tokens, torch.tensor([-1])])
    theirs = recorded("node_logits")[None]
    draws = RecordedDraws(recorded("uniform_draws").tolist(), recorded_round["bonus_token"])
    sampler: Any = RecordedChooser(params, draws)
    # On the recorded logits, so that decisions are compared and not rounding.
    decided = Rejection().accept(theirs, draft, sampler, torch.zeros(1, dtype=torch.int64))
    nodes = [0, *(decided.path[0, : int(decided.length[0])] + 1).tolist()]
    rows = [row for row in retrieve.tolist() if row[: len(nodes)] == nodes]
    best = retrieve.tolist().index(rows[0]) if rows else -1
    result = [
        equal(f"{label} draft tokens", tree.tokens[None], recorded("draft_tokens")),
        equal(f"{label} positions", tree.positions, recorded("tree_position_ids")),
        equal(f"{label} mask", tree.mask[None, None], recorded("tree_mask")),
        equal(f"{label} retrieve indices", retrieve, recorded("retrieve_indices")),
        equal(f"{label} candidates", sentinel[retrieve], recorded("candidates")),
        close(f"{label} logits", verified[0], recorded("node_logits")),
        equal(f"{label} accepted", int(decided.length[0]), recorded_round["accept_length"]),
        equal(f"{label} row", best, recorded_round["best_candidate"]),
        equal(f"{label} draws left", len(draws.draws), 0),
        close(f"{label} distribution of the next root", draws.probs, recorded("sample_p"), _PROBS_TOLERANCE),
    ]
    probs = params.probs(theirs[0].double())
    stop, pmf = exact_stop(draft, probs, recorded("exact_accept_pmf").shape[0])
    result += [
        close(
            f"{label} distribution of the last node", stop, recorded("exact_stop_node_prob"), _PROBS_TOLERANCE
        ),
        close(f"{label} distribution of the length", pmf, recorded("exact_accept_pmf"), _PROBS_TOLERANCE),
    ]
    # Thousands of draws from one round are as conclusive as from all.
    for acceptor in (Coupled(), Rejection()) if number == 0 else ():
        p = stop_node_p(acceptor, draft, theirs, params, recorded("exact_stop_node_prob"))
        result.append(
            Check(f"{label} {acceptor.name} by chi-square", p > LEAST_P, f"p = {p:.2g}" * (p <= LEAST_P))
        )
    return result


def exact_stop(draft: Draft, probs: Tensor, num_lengths: int) -> tuple[Tensor, Tensor]:
    """Probability that each node [1 + n] is the last accepted one, and of each accepted length.

    probs [1 + n, V]: of the token after each node. A path has the product of its tokens' probabilities.
    """
    parents, tokens = draft.parents[0] + 1, draft.tokens[0]
    step = probs[parents, tokens]
    reach, stays = torch.ones(len(probs), dtype=torch.float64), torch.ones(len(probs), dtype=torch.float64)
    for node, parent in enumerate(parents.tolist(), start=1):
        reach[node] = reach[parent] * step[node - 1]
        stays[parent] -= step[node - 1]
    stop = reach * stays
    depths = torch.nn.functional.pad(draft.depths[0], (1, 0))
    return stop, torch.zeros(num_lengths, dtype=torch.float64).index_add(0, depths, stop)


def stop_node_p(
    acceptor: Acceptor, draft: Draft, logits: Tensor, params: DecodingParams, expected: Tensor
) -> float:
    """p-value of where `acceptor` stops against the exact distribution; the best of a few seeds."""
    return max(_stop_node_p(acceptor, draft, logits, params, expected, seed) for seed in SEEDS)


def _stop_node_p(
    acceptor: Acceptor, draft: Draft, logits: Tensor, params: DecodingParams, expected: Tensor, seed: int
) -> float:
    counts = torch.zeros(draft.width + 1, dtype=torch.float64)
    decide: Callable[..., Accepted] = acceptor.accept
    for begin in range(0, _NUM_DRAWS, _CHUNK):
        keys = [stream_key(seed, str(draw), 0, 0) for draw in range(begin, begin + _CHUNK)]
        sampler = TokenSampler(params, keys, logits.shape[-1], logits.device)
        many = Draft(
            tokens=draft.tokens.expand(_CHUNK, -1),
            parents=draft.parents.expand(_CHUNK, -1),
            size=draft.size.expand(_CHUNK),
            num_levels=draft.num_levels,
        )
        wide = logits.expand(_CHUNK, -1, -1)
        accepted = decide(wide, many, sampler, torch.zeros(_CHUNK, dtype=torch.int64))
        path = torch.nn.functional.pad(accepted.path + 1, (1, 0))
        last = path.gather(1, accepted.length[:, None])[:, 0]
        counts += last.bincount(minlength=draft.width + 1)
    return chi_square_p(counts, expected)


def _follow(
    target: Target,
    recorder: RecordingDrafter,
    draft: Draft,
    verified: Tensor,
    accepted: Accepted,
    pending: int,
) -> None:
    """Commit the recorded path and show it to the drafter."""
    length = int(accepted.length[0])
    path = draft.tokens[0, accepted.path[0, :length]].tolist()
    taps = target.taken(accepted.path, [length])
    target.commit(accepted.path, [length])
    recorder.observe(
        Outcome(
            committed=[[pending, *path]],
            pending=accepted.token.tolist(),
            taps=taps,
            draft=draft,
            logits=verified,
        )
    )
