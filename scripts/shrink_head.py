"""Make a head smaller: fewer draft tokens, or what it adds to the head that it was trained from.

python scripts/shrink_head.py vocabulary HEAD OUT SIZE TOKENIZER DIALOGUES.jsonl

keeps the SIZE tokens of an EAGLE-3 head that are most frequent in the answers of the dialogues, in any form
that `data=given` reads as text; its LM head is then read faster, too. TOKENIZER: a folder with the target's
tokenizer.json. The rows are not trained again, so measure what it costs: `methods.eagle3.head=OUT` beside
HEAD in one run.

python scripts/shrink_head.py tokens OUT.pt SIZE TOKENIZER DIALOGUES.jsonl

writes these tokens as a token map of an EAGLE-2 head, which has no LM head of its own: a list in the format
of FR-Spec and of SGLang's `--speculative-token-map`. Draft with it: `methods.eagle2.token_map=OUT.pt`.

python scripts/shrink_head.py rank HEAD OUT RANK BASE

stores what HEAD adds to the matrices of BASE, in a fiftieth of the bytes or less. Where `python -m
harness.train start=BASE training.rank=RANK` has written HEAD, that has this rank and only rounding is lost;
of any other head the nearest of this rank is stored. OUT is read as a head wherever BASE is found: a
folder, a hub id, or one that ships.

HEAD and OUT are folders, but for OUT.pt.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from harness.config import ConfigError
from harness.drafting.drafter import TRAINING_PROMPTS
from harness.system.files import write_json
from harness.training.dialogue_lines import messages_of
from methods.shared import adapters
from methods.shared.draft_vocabulary import map_of_most_frequent
from methods.shared.head_files import read_head


def cut_vocabulary(asked: argparse.Namespace) -> str:
    """Write the head with fewer draft tokens; what was done.

    Raises:
        ConfigError: the head has no draft vocabulary of its own, or none that is larger than SIZE.
    """
    files = read_head(str(asked.head), None, f"head={asked.head}")
    tensors = dict(files.tensors)
    if not {"d2t", "t2d", "lm_head.weight"} <= set(tensors):
        raise ConfigError(f"{asked.head} has no draft vocabulary of its own (d2t, t2d, lm_head.weight)")
    ids = tensors["d2t"].long() + torch.arange(len(tensors["d2t"]))
    if not 0 < asked.size < len(ids):
        raise ConfigError(
            f"SIZE {asked.size}: needs a number from 1 to {len(ids) - 1}, less than the head has"
        )

    counts = answer_counts(asked, len(tensors["t2d"]))
    kept = map_of_most_frequent(counts[ids], asked.size) + torch.arange(asked.size)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][kept].contiguous()
    tensors["d2t"] = (ids[kept] - torch.arange(asked.size)).to(tensors["d2t"].dtype)
    tensors["t2d"] = torch.zeros_like(tensors["t2d"]).index_fill(0, ids[kept], 1)
    asked.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, asked.out / "model.safetensors", metadata={"format": "pt"})
    write_json(asked.out / "config.json", {**files.config, "draft_vocab_size": asked.size}, indent=2)
    share = counts[ids[kept]].sum() / counts.sum()
    return f"{asked.size} of {len(ids)} tokens, {share:.1%} of the answers"


def answer_counts(asked: argparse.Namespace, vocab_size: int = 0) -> torch.Tensor:
    """[V] int64: how often each token occurs in the answers; V is the tokenizer's size, or `vocab_size`."""
    tokenizer = Tokenizer.from_file(str(asked.tokenizer / "tokenizer.json"))
    counts = torch.zeros(vocab_size or tokenizer.get_vocab_size(), dtype=torch.int64)
    for line in asked.dialogues.read_text(encoding="utf-8").splitlines():
        for message in messages_of(json.loads(line)):
            if message.role == "assistant":
                answer = torch.tensor(tokenizer.encode(message.content).ids, dtype=torch.int64)
                counts += torch.bincount(answer, minlength=len(counts))
    return counts


def map_tokens(asked: argparse.Namespace) -> str:
    """Write the most frequent tokens, most frequent first; what was done.

    Raises:
        ConfigError: the answers have fewer tokens.
    """
    counts = answer_counts(asked)
    num_seen = int((counts > 0).sum())
    if not 0 < asked.size <= num_seen:
        raise ConfigError(
            f"SIZE {asked.size}: needs a number from 1 to {num_seen}, the tokens of the answers"
        )
    kept = counts.sort(descending=True, stable=True).indices[: asked.size]
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(kept.tolist(), asked.out)
    return f"{asked.size} of {len(counts)} tokens, {counts[kept].sum() / counts.sum():.1%} of the answers"


def store_low_rank(asked: argparse.Namespace) -> str:
    """Write what the head adds to its base; what was done.

    Raises:
        ConfigError: the head changed more than matrices.
    """
    head, base = (read_head(str(path), None, f"head={path}") for path in (asked.head, asked.base))
    named = asked.base, base.card["sha256"]
    share = adapters.write(asked.out, named, (base.tensors, head.tensors), asked.rank)
    stored = read_head(str(asked.out), None, f"head={asked.out}").tensors
    most = max(
        float((stored[name].float() - tensor.float()).abs().max() / tensor.float().abs().max())
        for name, tensor in head.tensors.items()
        if tensor.is_floating_point()
    )
    size = (asked.out / adapters.WEIGHTS).stat().st_size
    return f"{size:,} bytes, {share:.2%} of the difference; weights are off by {most:.1e} at most"


def main() -> None:
    """Write OUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ways = parser.add_subparsers(required=True, metavar="vocabulary|tokens|rank")
    for name, way in (("vocabulary", cut_vocabulary), ("tokens", map_tokens), ("rank", store_low_rank)):
        options = ways.add_parser(name)
        options.set_defaults(way=way, head=None)
        if way is not map_tokens:
            options.add_argument("head", type=Path)
        options.add_argument("out", type=Path)
        if way is store_low_rank:
            options.add_argument("rank", type=int)
            options.add_argument("base")
        else:
            options.add_argument("size", type=int)
            options.add_argument("tokenizer", type=Path)
            options.add_argument("dialogues", type=Path)
    asked = parser.parse_args()
    try:
        done = asked.way(asked)
    except ConfigError as error:
        parser.error(str(error))
    for name in ("card.json", TRAINING_PROMPTS):
        if asked.head and (asked.head / name).is_file():
            shutil.copy(asked.head / name, asked.out)
    print(f"{asked.out}: {done}")


if __name__ == "__main__":
    main()
