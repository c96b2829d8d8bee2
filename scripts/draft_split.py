"""Where drafting time goes: python scripts/draft_split.py [key=value ...], as for harness.bench.

Profiles the drafting of every EAGLE arm on one warm-up prompt and prints, per method, milliseconds of a draft
and the share spent outside matrix products, attention, log-softmax and top-k. Default: SmolLM2, random heads.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from hydra import compose, initialize_config_module
from torch.profiler import ProfilerActivity, profile

from harness.benchmark.plan import make_plan
from harness.benchmark.session import Session
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Request
from harness.decoding.loop import LocalEngine
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft
from harness.system.console import Console

DEFAULTS = [
    "~experiment",
    "method=[eagle2,eagle3,eagle3_chain]",
    *(f"methods.{name}.head=random" for name in ("eagle2", "eagle3", "eagle3_chain")),
    "measure=acceptance",
    "tracker=none",
]
WORK = ("linear", "scaled_dot_product_attention", "logsumexp", "topk")
NUM_TOKENS = 24


def main(overrides: list[str]) -> None:
    """Print a line a method."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("bench", overrides=[*DEFAULTS, *overrides])
    session = Session(make_plan(config, []), Console())
    prompt = session.render([_message(session)])
    params = DecodingParams(name="greedy", max_new_tokens=NUM_TOKENS, ignore_end_token=True)
    loop = LocalEngine(session.plan.engine.reference, (), session.model.max_context, timed=True)
    for name, drafter in session.plan.arms.items():
        if name == "vanilla":
            continue
        request = Request(prompt=prompt, key=0)
        loop.generate([request], drafter, params, Coupled())
        plain = drafter.propose
        spans, works = [], []

        def clocked(room: Any, plain: Any = plain, spans: Any = spans) -> Draft:
            begin = time.perf_counter()
            draft = plain(room)
            spans.append(time.perf_counter() - begin)
            return draft

        def profiled(room: Any, plain: Any = plain, works: Any = works) -> Draft:
            with profile(activities=[ProfilerActivity.CPU]) as seen:
                draft = plain(room)
            events = seen.key_averages()
            # Whole operations, with what they call.
            work = sum(event.cpu_time_total for event in events if event.key in {f"aten::{w}" for w in WORK})
            works.append(work * 1e-6)
            return draft

        for watched in (clocked, profiled):
            object.__setattr__(drafter, "propose", watched)
            made = loop.generate([request], drafter, params, Coupled())[0]
        # The first draft takes in the prompt. The clock runs without the profiler, which slows what it sees.
        span, work = (float(torch.tensor(times[1:]).median()) for times in (spans, works))
        verify = float(torch.tensor(made.verify_ns[1:], dtype=torch.float64).median()) * 1e-6
        print(
            f"{name}: {len(made.emitted)} rounds, draft {1000 * span:.1f} ms, of it other than work"
            f" {1 - work / span:.1%}; verify {verify:.1f} ms"
        )


def _message(session: Session) -> Any:
    from harness.tasks.conversation import Message

    conversation = session.plan.task.warmup()[0]
    return Message(role="user", content=conversation.turns[0])


if __name__ == "__main__":
    main(sys.argv[1:])
