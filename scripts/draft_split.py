"""Where drafting time goes: python scripts/draft_split.py [key=value ...], with the overrides of harness.bench.

Profiles the drafting of every EAGLE arm on one warm-up prompt and prints, per method, milliseconds of a draft and
the share spent outside matrix products, attention, log-softmax and top-k. Default: SmolLM2, random heads.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from hydra import compose, initialize_config_module
from torch.profiler import ProfilerActivity, profile

from harness.accept import Coupled
from harness.decoding import DecodingParams
from harness.draft import Draft
from harness.engine import LocalEngine, Request
from harness.experiment import Session
from harness.plan import make_plan
from harness.reporters import Console

DEFAULTS = [
    "~experiment",
    "method=[eagle2,eagle3,eagle3_chain]",
    *(f"methods.{name}.head=random" for name in ("eagle2", "eagle3", "eagle3_chain")),
    "measure=acceptance",
    "tracker=none",
]
WORK = ("mm", "attention", "softmax", "logsumexp", "topk", "flash", "linear", "bmm", "addmm")
NUM_TOKENS = 24


def main(overrides: list[str]) -> None:
    """Print a line a method."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("bench", overrides=[*DEFAULTS, *overrides])
    session = Session(make_plan(config, []), Console())
    prompt = session.render([_message(session)])
    params = DecodingParams(name="greedy", max_new_tokens=NUM_TOKENS, ignore_end_token=True)
    loop = LocalEngine(session.target, (), session.weights.max_context, timed=True)
    for name, drafter in session.plan.arms.items():
        if name == "vanilla":
            continue
        request = Request(prompt=prompt, key=0)
        loop.generate([request], drafter, params, Coupled())
        spans: list[float] = []
        shares: list[float] = []
        plain = drafter.propose

        def watched(room: Any, plain: Any = plain, spans: Any = spans, shares: Any = shares) -> Draft:
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                begin = time.perf_counter()
                draft = plain(room)
                spans.append(time.perf_counter() - begin)
            events = seen.key_averages()
            total = sum(event.self_cpu_time_total for event in events)
            work = sum(e.self_cpu_time_total for e in events if any(word in e.key for word in WORK))
            shares.append(1 - work / total)
            return draft

        object.__setattr__(drafter, "propose", watched)
        made = loop.generate([request], drafter, params, Coupled())[0]
        rounds = len(made.emitted)
        # The first draft takes in the prompt.
        share, span = torch.tensor(shares[1:]).median(), torch.tensor(spans[1:]).median()
        print(f"{name}: {rounds} rounds, draft {1000 * span:.1f} ms (profiled), other than work {share:.1%}")


def _message(session: Session) -> Any:
    from harness.conversation import Message

    conversation = session.plan.task.warmup()[0]
    return Message(role="user", content=conversation.turns[0])


if __name__ == "__main__":
    main(sys.argv[1:])
