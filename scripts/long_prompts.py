"""Make prompts with long contexts for a target to answer: several of its own texts, joined, to be summarised.

Self-synthesised dialogues are short, and a head that was never trained on a long context drafts badly on one.
python scripts/long_prompts.py DIALOGUES.jsonl OUT.jsonl [NUM] [SEED]; then
python -m harness.train data=answered data.task.path=OUT.jsonl ...
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

_ASKED = (
    "Summarize: {}",
    "{}\n\nSummarize the text above in a few sentences.",
    "What are the main points of the following?\n\n{}",
    "Read this and write its highlights.\n\n{}",
    "{}\n\nWhat is this text about?",
)
_NUM_WORDS = (250, 550)


def main(source: str, out: str, num: int = 160, seed: int = 0) -> None:
    """Write `num` prompts built from the answers in the JSONL file `source` (fields user and assistant)."""
    draw = random.Random(seed)
    lines = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    texts = [line["assistant"].strip() for line in lines if len(line["assistant"].split()) > 40]
    prompts = []
    for number in range(num):
        wanted, parts = draw.randint(*_NUM_WORDS), list[str]()
        while sum(len(part.split()) for part in parts) < wanted:
            parts.append(draw.choice(texts))
        turn = draw.choice(_ASKED).format("\n\n".join(parts))
        prompts.append({"question_id": f"long-{number}", "category": "long", "turns": [turn]})
    Path(out).write_text("".join(f"{json.dumps(one)}\n" for one in prompts), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
