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

from harness.accept import Coupled
from harness.batch import Batch, Request, read
from harness.conversation import Message
from harness.cost_table import load_table
from harness.decoding import DecodingParams
from harness.draft import Draft
from harness.plan import make_plan
from harness.profiling import paces
from harness.reporters import Console
from harness.session import Session

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


@torch.no_grad()
def main(overrides: list[str]) -> None:
    """Print one table."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("bench", overrides=[*DEFAULTS, *overrides])
    session = Session(make_plan(config, []), Console())
    target = session.target
    target.choose(paces(target, 1, [0, 15, 31, 63]).steps, 1)
    (name,) = session.plan.arms.keys() - {"vanilla"}
    drafter = session.plan.arms[name]
    tree = drafter.tree  # type: ignore[attr-defined]
    conversation = session.plan.task.warmup()[0]
    prompt = session.render([Message(role="user", content=conversation.turns[0])])
    other = copy.copy(drafter)
    other.bind(target)
    call = other.rehearse(1, len(prompt) + NUM_TOKENS // 2)
    assert call is not None
    params = DecodingParams(name="greedy", max_new_tokens=NUM_TOKENS, ignore_end_token=True)
    requests = [Request(prompt=prompt, key=0)]
    target.watch(drafter.taps)
    batch = Batch(target, requests, drafter, params, end_token_ids=(), max_context=4096)
    batch.prefill()
    empty, acceptor = Draft.empty(1, target.device), Coupled()
    spent: dict[str, list[float]] = {key: [] for key in ("round", "verify", "head", "one token", "16 nodes")}
    pairs, contexts = 1, []
    while batch.running:
        begin = time.perf_counter()
        draft = drafter.propose(batch.room())
        logits = target.verify(batch.pending, draft)
        accepted = acceptor.accept(logits, draft, batch.chooser, batch.positions())
        decision = read(accepted, draft)
        target.commit(accepted.path, decision.length)
        more = batch.record(draft, decision)
        if more:
            drafter.observe(batch.outcome(draft, logits, accepted, decision))
        batch.turn_over(more)
        spent["round"].append((time.perf_counter() - begin) * 1000)
        if not batch.running:
            break
        tokens = torch.ones(1, NUM_NODES, dtype=torch.int64)
        some = Draft(
            tokens=tokens,
            parents=((torch.arange(NUM_NODES) - 2) // 2).clamp(min=-1)[None],
            size=torch.full((1,), NUM_NODES),
        )
        alone = Draft(tokens=draft.tokens, parents=draft.parents, size=draft.size)
        spent["verify"].append(clocked(lambda alone=alone: target.verify(batch.pending, alone)))
        spent["one token"].append(clocked(lambda: target.verify(batch.pending, empty)))
        spent["16 nodes"].append(clocked(lambda some=some: target.verify(batch.pending, some)))
        head = clocked(lambda pairs=pairs: call(pairs))
        head += sum(clocked(lambda: call(tree.top_k)) for _ in range(tree.depth))
        spent["head"].append(head)
        contexts.append(target.cache.lengths[0])
        pairs = 1 + decision.length[0]
    # The first round takes in the prompt.
    median = {key: float(np.median(values[1:])) for key, values in spent.items()}
    parts = median["verify"] + median["head"]
    print(
        f"{name}, {len(spent['round'])} rounds: round {median['round']:.1f} ms; alone: verify of"
        f" {1 + tree.num_nodes} tokens {median['verify']:.1f} ms, 1 + {tree.depth} forwards of the head"
        f" {median['head']:.1f} ms; round / sum {median['round'] / parts:.3f}; one token"
        f" {median['one token']:.1f} ms, round / one token {median['round'] / median['one token']:.2f}"
    )
    if file := os.environ.get("COSTS"):
        told = float(load_table(Path(file)).seconds(1, float(np.median(contexts)), 1 + NUM_NODES)) * 1000
        print(
            f"16 nodes: {median['16 nodes']:.1f} ms now, {told:.1f} ms by the cost table,"
            f" ratio {median['16 nodes'] / told:.3f}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
