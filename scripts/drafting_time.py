"""CPU time of drafting by method: replays texts through propose and observe, without a forward of the target.

python scripts/drafting_time.py FILE... [--method NAME ...] [--set methods.suffix_tree.shape=tree]

A FILE is JSONL with `output_ids`, as the records.jsonl of a run, or any text, whose words and signs are its
tokens. The logits of a node are noise in which the tokens that followed its token anywhere are the likeliest.
Times are those of one thread on its CPU. They still grow where other work shares caches and memory.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module

from harness.config import build
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, Outcome
from methods.rest.datastore import Datastore
from methods.shared.stored_outputs import read_outputs

METHODS = ["ngram", "sam", "suffix", "suffix_tree", "pia", "rest", "lookahead", "racer", "token_recycling"]
VOCAB, MOST_NODES, NUM_LIKELY, PROMPT, LENGTH = 49152, 256, 8, 100, 1000


def speaker(texts: Sequence[Sequence[int]]) -> Callable[[Sequence[int]], torch.Tensor]:
    """A target: its logits [1, n, V] after n tokens are noise behind the usual successors of each."""
    noise = torch.randn(MOST_NODES, VOCAB, generator=torch.Generator().manual_seed(0))
    followers = Counter(pair for text in texts for pair in pairwise(text))
    likely: dict[int, list[int]] = {}
    for (one, after), _ in followers.most_common():
        likely.setdefault(one, []).append(after)

    def logits(tokens: Sequence[int]) -> torch.Tensor:
        made = noise[: len(tokens)].clone()
        for row, token in enumerate(tokens):
            best = likely.get(token, [])[:NUM_LIKELY]
            made[row, best] = torch.arange(20.0, 20.0 - len(best), -1.0)
        return made[None]

    return logits


def kept(draft: Draft, following: Sequence[int]) -> Iterator[int]:
    """The path of the draft that the text continues with."""
    size, node = int(draft.size[0]), -1
    nodes = list(zip(draft.parents[0, :size].tolist(), draft.tokens[0, :size].tolist(), strict=True))
    for token in following:
        if (node, token) not in nodes:
            return
        node = nodes.index((node, token))
        yield token


def replay(drafter: Drafter, text: Sequence[int], logits: Any) -> list[tuple[int, int]]:
    """Nanoseconds of `propose` and of `observe`, for every round."""
    drafter.new_call(keep_memory=False)
    drafter.reset(1)
    taps = [torch.zeros(1, PROMPT, 1) for _ in drafter.taps]
    drafter.observe(Outcome(committed=[list(text[:PROMPT])], pending=[text[PROMPT]], taps=taps))
    spent, place = [], PROMPT
    while place + 1 < len(text):
        begin = time.thread_time_ns()
        draft = drafter.propose([len(text) - place - 1])
        proposed = time.thread_time_ns()
        committed = [text[place], *kept(draft, text[place + 1 : -1])]
        place += len(committed)
        taps = [torch.zeros(1, len(committed), 1) for _ in drafter.taps]
        said = logits([committed[0], *draft.tokens[0].tolist()])
        riders = logits(draft.riders.tokens[0].tolist()) if draft.riders else None
        seen: Any = {"taps": taps, "draft": draft, "logits": said, "rider_logits": riders}
        outcome = Outcome(committed=[committed], pending=[text[place]], **seen)
        verified = time.thread_time_ns()
        drafter.observe(outcome)
        spent.append((proposed - begin, time.thread_time_ns() - verified))
    return spent


def read(file: str, numbers: dict[str, int]) -> list[list[int]]:
    """Pieces of a file's texts; words get the next free number."""
    if file.endswith(".jsonl"):
        texts = list(read_outputs(file, vocab_size=VOCAB))
    else:
        words = re.findall(r"\w+|\s+|[^\w\s]", Path(file).read_text("utf-8"))
        texts = [[numbers.setdefault(word, len(numbers)) for word in words]]
    pieces = [text[at : at + LENGTH] for text in texts for at in range(0, len(text), LENGTH)]
    return [piece for piece in pieces if len(piece) > PROMPT + 1]


def main() -> None:
    """Print one row per method."""
    parser = argparse.ArgumentParser(description="CPU time of drafting, by method.")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--method", nargs="+", default=METHODS, help="names of conf/method")
    parser.add_argument("--set", nargs="+", default=[], help="KEY=VALUE as for harness.bench")
    parser.add_argument("--round-ms", type=float, default=32.0, help="a round of the target, for the share")
    given = parser.parse_args()
    torch.set_num_threads(1)
    numbers: dict[str, int] = {}
    texts = [text for file in given.files for text in read(file, numbers)]
    logits = speaker(texts)
    target: Any = SimpleNamespace(device=torch.device("cpu"), vocab_size=VOCAB)
    target.lm_head = lambda states: logits([0] * states.shape[1])
    print("| method | rounds | propose us | observe us | both us | p95 us | share |\n|---|" + "---:|" * 6)
    with tempfile.TemporaryDirectory() as store, initialize_config_module("conf", version_base="1.3"):
        # Every second text is the datastore, and the others are drafted.
        Datastore.build(texts[::2], vocab_size=VOCAB).save(Path(store))
        for name in given.method:
            chosen = ["~experiment", f"method=[{name}]", f"+methods.rest.datastore={store}", *given.set]
            drafter: Any = build(compose("bench", overrides=chosen).methods[name.rpartition("/")[2]], name)
            drafter.bind(target)
            spent = [one for text in texts[1::2] for one in replay(drafter, text, logits)]
            columns = np.array([(*one, sum(one)) for one in spent]) / 1e3
            middle, latest = np.median(columns, axis=0), np.quantile(columns[:, 2], 0.95)
            share = middle[2] / given.round_ms / 1e3
            print(
                f"| {name} | {len(spent)} |", *(f"{one:.0f} |" for one in (*middle, latest)), f"{share:.2%} |"
            )


if __name__ == "__main__":
    main()
