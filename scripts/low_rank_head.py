"""Store a head as what it adds to the head that it was trained from: a hundredth of the bytes.

python scripts/low_rank_head.py HEAD BASE OUT RANK

HEAD: a folder that `python -m harness.train start=BASE training.rank=RANK` has written; what it adds to BASE
then has this rank, and only rounding is lost. Of any other head the nearest of this rank is stored. OUT is
read as a head wherever BASE is found: a folder, a hub id, or one that ships.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from harness.drafting.drafter import TRAINING_PROMPTS
from methods.shared import adapters
from methods.shared.head_files import read_head


def main() -> None:
    """Write the folder OUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("head")
    parser.add_argument("base")
    parser.add_argument("out", type=Path)
    parser.add_argument("rank", type=int)
    asked = parser.parse_args()
    head, base = (read_head(path, None, f"head={path}") for path in (asked.head, asked.base))
    named = asked.base, base.card["sha256"]
    share = adapters.write(asked.out, named, (base.tensors, head.tensors), asked.rank)
    for name in ("card.json", TRAINING_PROMPTS):
        if (Path(asked.head) / name).is_file():
            shutil.copy(Path(asked.head) / name, asked.out)
    stored = read_head(str(asked.out), None, f"head={asked.out}").tensors
    most = max(
        float((stored[name].float() - tensor.float()).abs().max() / tensor.float().abs().max())
        for name, tensor in head.tensors.items()
        if tensor.is_floating_point()
    )
    size = (asked.out / adapters.WEIGHTS).stat().st_size
    print(
        f"{asked.out}: {size:,} bytes, {share:.2%} of the difference; weights are off by {most:.1e} at most"
    )


if __name__ == "__main__":
    main()
