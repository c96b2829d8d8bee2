"""REST: draft the most frequent continuations of the last tokens in a fixed datastore, as one tree.

He et al. 2024, "REST: Retrieval-Based Speculative Decoding" (arXiv 2311.08252). The longest suffix of the
text, of 16 down to 2 tokens, that stands in the datastore decides; all beginnings of what follows its hits
are counted, and the 64 most frequent are the tree.

The released code cuts the tree a second time, by numbers of distinct tokens (`cut: released`); the paper
does not. Departures from it: ties are broken by length and token ids instead of by a random hash, tokens are
stored as 32 bits, and nothing is drafted without a hit.

A datastore is made of JSONL files with `output_ids`, as a run's records.jsonl is:

    python -m methods.rest --vocab-size 49152 --out FOLDER results/runs/*/records.jsonl
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.drafter import TargetView
from harness.drafting.sequence_drafter import SequenceTreeDrafter
from methods.rest.datastore import Datastore, frequent_prefixes, released_cut
from methods.shared.stored_outputs import read_outputs


@configurable
class Rest(SequenceTreeDrafter):
    """Drafts a tree of continuations from a datastore."""

    datastore: str | None = None
    """Folder that `python -m methods.rest` made."""
    ids: tuple[int, ...] | None = None
    """The text itself, token ids, instead of a folder; for a small one."""
    num_nodes: int = Field(default=64, ge=1)
    """Nodes of a draft."""
    max_suffix: int = Field(default=16, ge=1)
    """Longest suffix of the text that is searched, in tokens."""
    min_suffix: int = Field(default=2, ge=1)
    """Shortest suffix that is searched."""
    max_hits: int = Field(default=5000, ge=1)
    """Hits of which the continuations are counted, in the order of the suffix array."""
    continuation: int = Field(default=10, ge=1)
    """Tokens behind a hit that are counted, and so the deepest level of a draft."""

    cut: Literal["paper", "released"] = "paper"
    """Which of the counted beginnings are the tree. `paper`: the `num_nodes` most frequent. `released`: of
    these, beginnings are dropped until their numbers of distinct tokens add up to `num_nodes`."""

    @override
    def bind(self, target: TargetView) -> None:
        """Map the datastore.

        Raises:
            ConfigError: it is missing, or holds tokens of another vocabulary.
        """
        super().bind(target)
        if (self.datastore is None) == (self.ids is None):
            raise ConfigError(
                "datastore: give a folder, which python -m methods.rest makes, or the token ids themselves"
                f" with ids=[...]; got {'both' if self.ids else 'neither'}"
            )
        if self.ids is not None:
            self._store = Datastore.build([self.ids], vocab_size=target.vocab_size)
            return
        self._store = Datastore.open(Path(str(self.datastore)))
        own = self._store.about.get("vocab_size")
        if own != target.vocab_size:
            raise ConfigError(
                f"datastore={self.datastore}: made for a vocabulary of {own} tokens, the target has"
                f" {target.vocab_size}; make one of the target's own outputs with python -m methods.rest"
                f" --vocab-size {target.vocab_size} --out FOLDER FILE..."
            )

    @override
    def card(self) -> dict[str, Any]:
        # Another datastore makes another measurement.
        return {"datastore": self._store.about}

    @override
    def propose_tree(self, context: Sequence[int], state: Any, room: int) -> tuple[list[int], list[int]]:
        hits = self._store.longest_hits(context, self.max_suffix, self.min_suffix)[: self.max_hits]
        found = self._store.continuations(hits, min(self.continuation, room))
        choose = frequent_prefixes if self.cut == "paper" else released_cut
        return _tree(choose(found, self.num_nodes))


def _tree(paths: Sequence[tuple[int, ...]]) -> tuple[list[int], list[int]]:
    """Tokens and parents of paths that are closed under prefixes."""
    places: dict[tuple[int, ...], int] = {(): -1}
    for place, path in enumerate(sorted(paths, key=len)):
        places[path] = place
    del places[()]
    return [path[-1] for path in places], [places.get(path[:-1], -1) for path in places]


def different_outputs(files: Sequence[str], vocab_size: int) -> Iterator[list[int]]:
    """The different `output_ids` of JSONL files, in their order.

    Raises:
        ConfigError: a file is missing, or a line has no ids of the vocabulary; by line.
    """
    seen: set[tuple[int, ...]] = set()
    for name in files:
        for ids in read_outputs(name, vocab_size=vocab_size):
            if tuple(ids) not in seen:
                seen.add(tuple(ids))
                yield ids


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a datastore; the exit status: 0 good, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m methods.rest", description="Make a datastore for method=rest of stored outputs."
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSONL with output_ids, as records.jsonl")
    parser.add_argument("--vocab-size", type=int, required=True, help="of the target that drafts from it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    given = parser.parse_args(arguments)
    try:
        outputs = different_outputs(given.files, given.vocab_size)
        made = Datastore.build(
            outputs, vocab_size=given.vocab_size, sources=[Path(file).name for file in given.files]
        )
        made.save(given.out)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{made.about['num_tokens']} tokens in {given.out}", file=sys.stderr)
    return 0
