"""Replay of a recorded trace: a drafter is shown what the recorded code saw, and must draft what it drafted.

After every round the drafter observes the recorded tree and decision, never its own, so that one difference
does not spread.

Shapes: n nodes of a draft, m tokens of a prompt, r riders, k recorded ids per row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from harness.conformance.case import Case, Check
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter, Outcome, TargetView

Path = tuple[int, ...]
Which = Literal["draft", "paper"]
"""Which recorded trees a drafter has to draft: those of the code, or those of the paper's rule where the
record has both."""
WHICH: tuple[Which, ...] = get_args(Which)
_LEARNED = ("matrix_updated", "official_pushed")
"""Fields that say what a code learned from a round. It learned nothing where they are missing or false, which
is so in a round that ended a call."""
_MUCH_ROOM = 1 << 20
_MOST_BY_CHANCE = 0.25
"""Share of a tree by which a run with random ties may differ from what other runs drafted."""


def replayed(case: Case, which: Which, drafter: Drafter) -> Iterator[Check]:
    """One check per recorded draft."""
    vocab_size = case.data["vocab_size"]
    drafter.bind(_target(vocab_size))
    tensors = case.tensors if "tensors" in case.data else {}
    for number, call in enumerate(case.data["calls"]):
        recorded = RecordedCall(case, call, number, tensors)
        drafter.new_call(call["memory"] == "kept")
        drafter.reset(1)
        drafter.observe(recorded.prefill(drafter))
        for index, told in enumerate(call["rounds"]):
            draft = drafter.propose([recorded.room(told)])
            name = f"call {number}, round {index}"
            yield from _compared(name, case, which, told, draft)
            yield from _riders(name, recorded, index, draft)
            if recorded.is_learned(told):
                drafter.observe(recorded.outcome(index, told, draft, drafter))


def _target(vocab_size: int) -> TargetView:
    """A stand-in whose hidden states are logits, so that its LM head has nothing to do."""
    config = SimpleNamespace(num_hidden_layers=1, hidden_size=vocab_size, vocab_size=vocab_size)
    view = SimpleNamespace(
        device=torch.device("cpu"),
        dtype=torch.float32,
        vocab_size=vocab_size,
        config=config,
        lm_head=lambda hidden: hidden,
    )
    return cast("TargetView", view)


@dataclass(frozen=True)
class RecordedCall:
    """A recorded call as outcomes of the drafter interface."""

    case: Case
    call: dict[str, Any]
    number: int
    tensors: dict[str, Tensor]

    def prefill(self, drafter: Drafter) -> Outcome:
        """The prompt up to the first root."""
        script, begin = self.call["script"], self.call["rounds"][0]["n"]
        best = self.tensors.get(f"c{self.number}.prefill_topk")
        # A method that asks for states reads logits from them.
        states = torch.zeros(1, begin, 1) if best is None else self._logits(best[:begin])
        taps = [states for _ in drafter.taps]
        return Outcome(committed=[script[:begin]], pending=[script[begin]], taps=taps)

    def room(self, told: dict[str, Any]) -> int:
        """Tokens that may be drafted: the round's own budget, or none where the text has its full length."""
        if "budget" in told:
            return int(told["budget"]) - 1
        longest = self.case.data["params"].get("max_length")
        return 0 if longest is not None and told["n"] + 2 >= longest else _MUCH_ROOM

    def is_learned(self, told: dict[str, Any]) -> bool:
        """Whether the recorded code learned from the round."""
        named = [name for name in _LEARNED if any(name in other for other in self.call["rounds"])]
        return all(told.get(name) for name in named)

    def outcome(self, index: int, told: dict[str, Any], own: Draft, drafter: Drafter) -> Outcome:
        """What became of the recorded tree."""
        committed = self.committed(told)
        draft, logits = own, None
        if (best := self.tensors.get(f"c{self.number}.topk")) is not None:
            tokens, parents = self._official_tree(index, told)
            draft = _tree(tokens[1:], [parent - 1 for parent in parents[1:]])
            logits = self._logits(best[index, : len(tokens)])
        following = told["n"] + len(committed)
        script = self.call["script"]
        pending = told.get("next_root")
        if pending is None:
            pending = script[following] if following < len(script) else 0
        return Outcome(
            committed=[committed],
            pending=[pending],
            taps=[torch.zeros(1, len(committed), 1) for _ in drafter.taps],
            draft=draft,
            logits=logits,
            rider_logits=self._rider_logits(told, own),
        )

    def committed(self, told: dict[str, Any]) -> list[int]:
        """The root and the accepted tokens, up to an end token unless the code stored what came behind it."""
        num_accepted = told.get("accepted_len", len(told.get("accepted_nodes", ())))
        taken: list[int] = self.call["script"][told["n"] : told["n"] + 1 + num_accepted]
        end = self.case.data["eos_token_id"]
        if told.get("pushed") == taken or end not in taken[1:]:
            return taken
        return taken[: taken.index(end, 1) + 1]

    def _official_tree(self, index: int, told: dict[str, Any]) -> tuple[list[int], list[int]]:
        """Tokens and parents in the order of the recorded rows, the root first."""
        if "official_tokens" in told:
            return told["official_tokens"], told["official_parents"]
        tokens = self.tensors[f"c{self.number}.official_tokens"][index].tolist()
        return tokens, self.case.data["official_parents"]

    def _logits(self, best: Tensor) -> Tensor:
        """Logits [1, m, V] whose k largest are the recorded ids, the first one highest."""
        logits = torch.zeros(1, len(best), self.case.data["vocab_size"])
        heights = torch.arange(best.shape[1], 0, -1).float().expand(best.shape)
        logits[0].scatter_(1, best.long(), heights)
        return logits

    def _rider_logits(self, told: dict[str, Any], own: Draft) -> Tensor | None:
        """Logits [1, r, V] that put the recorded ids behind the last riders, which are the newest level."""
        if own.riders is None or "window_results" not in told:
            return None
        results = told["window_results"]
        logits = torch.zeros(1, own.num_riders, self.case.data["vocab_size"])
        logits[0, range(own.num_riders - len(results), own.num_riders), results] = 1.0
        return logits


def _compared(name: str, case: Case, which: Which, told: dict[str, Any], draft: Draft) -> Iterator[Check]:
    size = int(draft.size[0])
    own = paths_of(draft.tokens[0, :size].tolist(), draft.parents[0, :size].tolist())
    if which == "paper":
        if "paper_tokens" in told:
            yield _same(name, own, paths_of(told["paper_tokens"], told["paper_parents"]))
        return
    if told["draft_tokens"] is None:
        # A router handed the round to its second drafter, which was not recorded.
        yield Check(name, not own, "" if not own else f"drafts {own[-1]}, the recorded code nothing")
        return
    tie = told.get("tie")
    recorded = paths_of(told["draft_tokens"], told["draft_parents"])
    if tie is None:
        yield _same(name, own, recorded)
    elif "strict_tokens" in tie:
        missing = set(paths_of(tie["strict_tokens"], tie["strict_parents"])) - set(own)
        yield Check(name, not missing, _difference(missing, set()) if missing else "")
    else:
        yield _mostly(name, own, tie)


def _same(name: str, own: list[Path], recorded: list[Path]) -> Check:
    """Compare up to the order of siblings."""
    missing, more = set(recorded) - set(own), set(own) - set(recorded)
    passed = not missing and not more and len(own) == len(recorded)
    return Check(name, passed, "" if passed else _difference(missing, more))


def _mostly(name: str, own: list[Path], tie: dict[str, Any]) -> Check:
    """Compare a tree whose ties the recorded code broke at random, in some runs.

    What these runs always or ever drafted bounds no other run, so a few nodes may lie outside.
    """
    least, most = (
        set(paths_of(tie[f"{what}_tokens"], tie[f"{what}_parents"])) for what in ("always", "ever")
    )
    missing, more = least - set(own), set(own) - most
    passed = len(missing) <= _MOST_BY_CHANCE * len(least) and len(more) <= _MOST_BY_CHANCE * len(own)
    return Check(name, passed, "" if passed else _difference(missing, more))


def _difference(missing: set[Path], more: set[Path]) -> str:
    shown = [f"{word} {min(paths)}" for word, paths in (("lacks", missing), ("adds", more)) if paths]
    return f"{' and '.join(shown)}; {len(missing)} paths too few, {len(more)} too many"


def _riders(name: str, recorded: RecordedCall, index: int, draft: Draft) -> Iterator[Check]:
    """Compare the tokens that ride along, and where it is recorded, their positions and what they see."""
    told = recorded.call["rounds"][index]
    if "window" not in told:
        return
    tokens = [token for level in told["window"] if level is not None for token in level]
    riders = draft.riders
    own = riders.tokens[0].tolist() if riders else []
    yield Check(f"{name}, riders", own == tokens, "" if own == tokens else f"{own} instead of {tokens}")
    seen = recorded.tensors.get(f"r{index}.mask")
    # The first recorded forward held the prompt as well.
    if seen is None or index == 0 or riders is None:
        return
    places = recorded.tensors[f"r{index}.positions"]
    count = 1 + riders.width
    offsets = (places - places[0])[1:count].tolist()
    columns = [0, *range(1 + draft.width, 1 + draft.width + riders.width)]
    same = torch.equal(riders.visible[0][:, columns], seen[1:count, :count].bool())
    same = same and riders.offsets[0].tolist() == offsets
    yield Check(f"{name}, positions and mask", same, "" if same else "differ")


def paths_of(tokens: Sequence[int], parents: Sequence[int]) -> list[Path]:
    """The tokens from the first level down to each node; -1 is the parent of the first level."""
    found: list[Path] = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def _tree(tokens: Sequence[int], parents: Sequence[int]) -> Draft:
    """A recorded tree of one sequence, duplicates included."""
    return Draft(
        tokens=torch.tensor([list(tokens)], dtype=torch.int64),
        parents=torch.tensor([list(parents)], dtype=torch.int64),
        size=torch.tensor([len(tokens)]),
    )
