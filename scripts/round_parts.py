"""A round against its parts, timed alone: python scripts/round_parts.py [key=value ...], as harness.bench.

Decodes one warm-up prompt with an EAGLE arm (default: EAGLE-3, 60 nodes, depth 7, 10 wide). Between two
rounds of the loop it times, alone: the target's forward over the round's tree and over one token, and the
forwards of the head that the round made. Prints medians, and the round over the sum of its parts. With a cost
table (a file of `python -m harness.cost`) as COSTS=FILE in the environment, also what it says of a tree of 16
nodes.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_module

from harness.benchmark.plan import make_plan
from harness.benchmark.session import Session
from harness.costs.table import load_table
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Batch, Request, read
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter
from harness.drafting.trees import DynamicTree
from harness.profiling.step_timing import paces
from harness.system.console import Console
from harness.target.model import Target
from harness.tasks.conversation import Message

DEFAULTS = [
    *("~experiment", "method=[eagle3]", "measure=acceptance", "tracker=none"),
    *(f"methods.eagle3.tree.{key}" for key in ("total_token=60", "depth=7", "top_k=10")),
]
NUM_TOKENS = 120
NUM_NODES = 16


def clocked(call: object) -> float:
    """Milliseconds of a call."""
    begin = time.perf_counter()
    call()  # type: ignore[operator]
    return (time.perf_counter() - begin) * 1000


def one_round(batch: Batch, target: Target, drafter: Drafter) -> tuple[Draft, int]:
    """What the loop does in a round: the draft, and how many of its nodes were kept."""
    draft = drafter.propose(batch.room())
    logits = target.verify(batch.pending, draft)
    accepted = Coupled().accept(logits, draft, batch.sampler, batch.positions())
    decision = read(accepted, draft)
    target.commit(accepted.path, decision.length)
    more = batch.record(draft, decision)
    if more:
        drafter.observe(batch.outcome(draft, logits, accepted, decision))
    batch.refill(more)
    return draft, decision.length[0]


def binary_tree(size: int) -> Draft:
    """As a cost table has it."""
    parents = ((torch.arange(size) - 2) // 2).clamp(min=-1)[None]
    return Draft(tokens=torch.ones(1, size, dtype=torch.int64), parents=parents, size=torch.full((1,), size))


def measure(session: Session, name: str) -> tuple[dict[str, float], float]:
    """Median milliseconds of a round and of its parts, and the median context."""
    target, drafter = session.target, session.plan.arms[name]
    tree: DynamicTree = drafter.tree  # type: ignore[attr-defined]
    conversation = session.plan.task.warmup()[0]
    prompt = session.render([Message(role="user", content=conversation.turns[0])])
    other = copy.copy(drafter)
    other.bind(target)
    call = other.rehearse(1, len(prompt) + NUM_TOKENS // 2)
    assert call is not None
    params = DecodingParams(name="greedy", max_new_tokens=NUM_TOKENS, ignore_end_token=True)
    target.set_taps(drafter.taps)
    requests = [Request(prompt=prompt, key=0)]
    batch = Batch(target, requests, drafter, params, end_token_ids=(), max_context=4096)
    batch.prefill()
    spent: dict[str, list[float]] = {key: [] for key in ("round", "verify", "head", "one token", "16 nodes")}
    contexts, pairs = [], 1
    while True:
        begin = time.perf_counter()
        draft, kept = one_round(batch, target, drafter)
        spent["round"].append((time.perf_counter() - begin) * 1000)
        if not batch.running:
            break
        # Copies have no masks yet, as a draft of the loop.
        alone = Draft(tokens=draft.tokens, parents=draft.parents, size=draft.size)
        for key, shown in (
            ("verify", alone),
            ("one token", Draft.empty(1, target.device)),
            ("16 nodes", binary_tree(NUM_NODES)),
        ):
            spent[key].append(clocked(lambda shown=shown: target.verify(batch.pending, shown)))
        widths = [pairs, *[tree.top_k] * tree.depth]
        spent["head"].append(sum(clocked(lambda width=width: call(width)) for width in widths))
        contexts.append(target.cache.lengths[0])
        pairs = 1 + kept
    # The first round takes in the prompt.
    return {key: float(np.median(values[1:])) for key, values in spent.items()}, float(np.median(contexts))


@torch.no_grad()
def main(overrides: list[str]) -> None:
    """Print a line or two."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("bench", overrides=[*DEFAULTS, *overrides])
    session = Session(make_plan(config, []), Console())
    session.target.steps.choose(paces(session.target, 1, [0, 15, 31, 63]).steps, 1)
    (name,) = session.plan.arms.keys() - {"vanilla"}
    median, context = measure(session, name)
    parts = median["verify"] + median["head"]
    print(
        f"{name}: round {median['round']:.1f} ms; alone: verify {median['verify']:.1f} ms, forwards of head"
        f" {median['head']:.1f} ms; round / sum {median['round'] / parts:.3f}; one token"
        f" {median['one token']:.1f} ms, round / one token {median['round'] / median['one token']:.2f}"
    )
    if file := os.environ.get("COSTS"):
        told = float(load_table(Path(file)).seconds(1, context, 1 + NUM_NODES)) * 1000
        print(
            f"16 nodes: {median['16 nodes']:.1f} ms now, {told:.1f} ms by the cost table,"
            f" ratio {median['16 nodes'] / told:.3f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
