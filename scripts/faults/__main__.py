"""Try to lose, double or falsify stored runs: python -m scripts.faults FOLDER [--seed N]

Three parts, each repeated with random choices of one seed:

* kills: a process that writes a run with the store's own code (or packs and unpacks it) is killed (-9) at a
  random moment, again and again, until the run is finished. `--whole N` does the same to N processes of
  `python -m harness.bench` on a tiny random model.
* disks: the same writer on a disk that is full after a random number of bytes, which is then given room.
* stores: a store of runs, archives and runs of an older version is damaged in one to three ways (bytes,
  lines, types, links, pipes, archives), then read, verified, packed and resumed.

Prints one JSON line per part: tried, survived, records lost, records doubled, tracebacks, hangs, and the
stores in which damage to what was measured went unnoticed. Exit status 1 if any of these is not 0.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from scripts.faults.stores import stores
from scripts.faults.writers import disks, kills, whole_runs


def main() -> int:
    """Run the chosen parts."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="where everything is written; its contents are replaced")
    parser.add_argument("--seed", type=int, default=0)
    for name, number in (("kills", 500), ("disks", 50), ("stores", 1000), ("whole", 0)):
        parser.add_argument(f"--{name}", type=int, default=number, metavar="N")
    given = parser.parse_args()
    parts = {"kills": kills, "disks": disks, "stores": stores, "whole": whole_runs}
    tallies = []
    for name, part in parts.items():
        if number := getattr(given, name):
            place = given.folder / name
            place.mkdir(parents=True, exist_ok=True)
            tallies.append(part(place, number, random.Random(f"{given.seed} {name}")))
            tallies[-1].show()
    return 1 if any(tally.num_faults for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
