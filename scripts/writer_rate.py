"""How fast dialogues are written, beside transformers' own batched `generate`, in one run.

python scripts/writer_rate.py PROMPTS.jsonl [NUM [BATCH_SIZE]] [OVERRIDE ...]

answers the first NUM prompts (default 128) with both, a chunk of 4 batches at a time, and prints tokens per
second of each, their ratio per chunk, and how many answers are the same. OVERRIDE: of harness.train, such as
target.dtype=bfloat16. `generate` gets batches of the same size, sorted by length as the writer's are, padded
on the left, with transformers' own attention.
"""

from __future__ import annotations

import sys
import time

import torch
from hydra import compose, initialize_config_module
from transformers import GenerationConfig

from harness.config import build
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.system.console import Console
from harness.target.chat_template import render
from harness.target.model import Target
from harness.tasks.conversation import Message
from harness.tasks.task import JsonlTask
from harness.training.writer import Writer
from methods.vanilla import Vanilla

CAP = 256


def generated(target: Target, ends: list[int], prompts: list[list[int]], size: int) -> list[list[int]]:
    """transformers' answers to the prompts, `size` at a time."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    answers: list[list[int]] = [[] for _ in prompts]
    config = GenerationConfig(do_sample=False, max_new_tokens=CAP, eos_token_id=ends, pad_token_id=0)
    target.set_taps(())
    target.use_kernel("sdpa")
    for begin in range(0, len(order), size):
        places = order[begin : begin + size]
        longest = max(len(prompts[place]) for place in places)
        padded = [[0] * (longest - len(prompts[place])) + prompts[place] for place in places]
        seen = [[0] * (longest - len(prompts[place])) + [1] * len(prompts[place]) for place in places]
        made = target.model.generate(
            torch.tensor(padded), attention_mask=torch.tensor(seen), generation_config=config
        )
        for place, row in zip(places, made[:, longest:].tolist(), strict=True):
            end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            answers[place] = row[:end]
    target.use_kernel()
    return answers


def main() -> None:
    """Print a line per chunk and one for all."""
    numbers = [int(text) for text in sys.argv[2:4] if text.isdecimal()]
    num, size = [*numbers, *(128, 32)[len(numbers) :]]
    with initialize_config_module("conf", version_base=None):
        config = compose("train", overrides=sys.argv[2 + len(numbers) :])
    spec = build(config.target, "target")
    weights = spec.load(Console().note)
    target = Target(weights.model, spec.attention, spec.linear)
    drafter = Vanilla()
    drafter.bind(target)
    writer = Writer(
        engine=DecodingLoop(target, weights.end_token_ids, weights.max_context, timed=False),
        drafter=drafter,
        render=lambda messages: render(weights.tokenizer, messages, spec.chat),
        eos_token_id=weights.tokenizer.eos_token_id,
        decode=lambda ids: "",
        encode=lambda text: [],
        note=Console().note,
    )
    asked = [one.turns[0] for one in JsonlTask(name="prompts", path=sys.argv[1]).load()[:num]]
    prompts = [writer.render([Message(role="user", content=text)]) for text in asked]
    params = DecodingParams(name="answers", max_new_tokens=CAP)
    rates: list[tuple[float, float]] = []
    for begin in range(0, num, 4 * size):
        part = prompts[begin : begin + 4 * size]
        ticks = [time.perf_counter()]
        ours = writer.write([(f"answer {begin + i}", ids) for i, ids in enumerate(part)], params, size)
        ticks.append(time.perf_counter())
        theirs = generated(target, sorted(weights.end_token_ids), part, size)
        ticks.append(time.perf_counter())
        own = sum(map(len, ours)) / (ticks[1] - ticks[0])
        other = sum(map(len, theirs)) / (ticks[2] - ticks[1])
        rates.append((own, other))
        same = sum(one == two for one, two in zip(ours, theirs, strict=True))
        print(
            f"{len(part)} prompts: writer {own:.0f}, generate {other:.0f} tokens/s, ratio {own / other:.2f};"
            f" {same} answers are the same"
        )
    ratios = sorted(own / other for own, other in rates)
    print(f"median ratio {ratios[len(ratios) // 2]:.2f} over {len(ratios)} chunks")


if __name__ == "__main__":
    main()
