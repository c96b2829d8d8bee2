"""Cut the draft vocabulary of a trained EAGLE-3 head: a smaller LM head is read faster and needs less room.

python scripts/cut_vocabulary.py HEAD OUT SIZE TOKENIZER DIALOGUES.jsonl

Keeps the SIZE tokens of HEAD, a folder, that are most frequent in the answers of the dialogues, in any form
that `data=given` reads as text. TOKENIZER: a folder with the target's tokenizer.json. The rows are not
trained again, so measure what it costs: `methods.eagle3.head=OUT` beside HEAD in one run.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from harness.system.files import write_json
from harness.training.dialogue_lines import messages_of
from methods.shared.draft_vocabulary import map_of_most_frequent
from methods.shared.head_files import read_head


def main() -> None:
    """Write the folder OUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("head", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("size", type=int)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("dialogues", type=Path)
    asked = parser.parse_args()

    files = read_head(str(asked.head), None, f"head={asked.head}")
    tensors = dict(files.tensors)
    if not {"d2t", "t2d", "lm_head.weight"} <= set(tensors):
        parser.error(f"{asked.head} has no draft vocabulary of its own (d2t, t2d, lm_head.weight)")
    ids = tensors["d2t"].long() + torch.arange(len(tensors["d2t"]))
    if not 0 < asked.size < len(ids):
        parser.error(f"SIZE {asked.size}: needs a number from 1 to {len(ids) - 1}, less than the head has")

    tokenizer = Tokenizer.from_file(str(asked.tokenizer / "tokenizer.json"))
    counts = torch.zeros(len(tensors["t2d"]), dtype=torch.int64)
    for line in asked.dialogues.read_text(encoding="utf-8").splitlines():
        for message in messages_of(json.loads(line)):
            if message.role == "assistant":
                answer = torch.tensor(tokenizer.encode(message.content).ids, dtype=torch.int64)
                counts += torch.bincount(answer, minlength=len(counts))

    kept = map_of_most_frequent(counts[ids], asked.size) + torch.arange(asked.size)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][kept].contiguous()
    tensors["d2t"] = (ids[kept] - torch.arange(asked.size)).to(tensors["d2t"].dtype)
    tensors["t2d"] = torch.zeros_like(tensors["t2d"]).index_fill(0, ids[kept], 1)
    asked.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, asked.out / "model.safetensors", metadata={"format": "pt"})
    write_json(asked.out / "config.json", {**files.config, "draft_vocab_size": asked.size}, indent=2)
    for name in ("card.json", "prompts.npy"):
        if (asked.head / name).is_file():
            shutil.copy(asked.head / name, asked.out)
    share = counts[ids[kept]].sum() / counts.sum()
    print(f"{asked.out}: {asked.size} of {len(ids)} tokens, {share:.1%} of the answers")


if __name__ == "__main__":
    main()
