"""The target's features of dialogues, to train on: computed on the fly, or computed once and kept on disk.

Shapes: L tokens of a packed row, n of one dialogue, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from harness.config import ConfigError
from harness.drafting.drafter import HiddenTap, Tap
from harness.drafting.trainable import TrainingRow
from harness.system.naming import digest
from harness.target.model import Target
from harness.training.dialogues import Sample
from harness.training.row_packing import pack

_FINAL = HiddenTap(-1, "normed")
_BEST = "best"
_SHARD = 128
"""Dialogues per file."""
_CPU_ROW = 256
"""Longest row that features are computed for on a CPU."""


class Features:
    """Computes the target's features of a row when the row is asked for."""

    def __init__(self, target: Target, taps: Sequence[Tap]) -> None:
        self._target, self._taps = target, tuple(taps)

    def prepare(
        self, samples: Sequence[Sample], row_tokens: int, process: int = 0, num_processes: int = 1
    ) -> None:
        """Get ready for rows of at most `row_tokens` that are made of these dialogues.

        It comes before the first row. Each of several processes calls it, and then waits for the others
        before it asks for a row.
        """

    def row(self, samples: Sequence[Sample]) -> TrainingRow:
        """The row of these dialogues, one after the other."""
        states = dict(zip(self._names(), self._compute(samples, (*self._taps, _FINAL)), strict=True))
        return self._row(samples, {**states, _BEST: self._best(samples, states[_name(_FINAL)])})

    def _names(self) -> list[str]:
        return [_name(tap) for tap in (*self._taps, _FINAL)]

    @torch.no_grad()
    def _compute(self, samples: Sequence[Sample], taps: Sequence[Tap]) -> list[Tensor]:
        ids, document, positions = _laid_out(samples, self._target.device)
        # A token sees the earlier tokens of its own document.
        mask = torch.ones(len(ids), len(ids), dtype=torch.bool, device=ids.device).tril()
        mask &= document[:, None] == document[None]
        with self._target.traced(taps) as traced:
            self._target.model.get_decoder()(
                input_ids=ids[None],
                position_ids=positions[None],
                attention_mask=self._target.masks.between(positions[None], mask[None, None]),
                use_cache=False,
            )
            return [state[0] for state in traced.states()]

    @torch.no_grad()
    def _best(self, samples: Sequence[Sample], final: Tensor) -> Tensor:
        """[L] int64: the target's most probable next token after each token of an answer, -1 elsewhere."""
        answer = _answer(samples, final.device)
        best = torch.full((len(answer),), -1, dtype=torch.int64, device=final.device)
        best[answer] = self._target.lm_head(final[answer]).argmax(-1)
        return best

    def _row(self, samples: Sequence[Sample], parts: dict[str, Tensor]) -> TrainingRow:
        ids, document, positions = _laid_out(samples, self._target.device)
        return TrainingRow(
            ids=ids,
            answer=_answer(samples, self._target.device),
            document=document,
            positions=positions,
            taps=[parts[_name(tap)] for tap in self._taps],
            final=parts[_name(_FINAL)],
            best=parts[_BEST],
        )


class CachedFeatures(Features):
    """Keeps features in files below a folder, one file per tapped state and 128 dialogues.

    Methods share the files of the states that they have in common, and adding dialogues leaves existing files
    as they are. The files are in half precision, a relative error of about 0.1 % in what a head reads.
    """

    def __init__(
        self, target: Target, taps: Sequence[Tap], folder: Path, identity: Any, note: Callable[[str], None]
    ) -> None:
        """identity: identifies the target's weights, in JSON types; other weights get another folder."""
        super().__init__(target, taps)
        self._note = note
        self._dtype = target.dtype if target.dtype.itemsize == 2 else torch.float16
        self._folder = folder / digest([identity, str(self._dtype)])[:16]
        self._shards: dict[str, str] = {}
        self._open: dict[Path, Any] = {}

    def prepare(
        self, samples: Sequence[Sample], row_tokens: int, process: int = 0, num_processes: int = 1
    ) -> None:
        """Compute the missing files. Each of several processes does its share; an interrupted run resumes.

        Raises:
            ConfigError: a state is too large for half precision.
        """
        for number, begin in enumerate(range(0, len(samples), _SHARD)):
            part = samples[begin : begin + _SHARD]
            keys = [_key(sample) for sample in part]
            name = digest(keys)[:24]
            self._shards.update(dict.fromkeys(keys, name))
            if number % num_processes == process and self._write(name, keys, part, row_tokens):
                self._note(
                    f"features of {begin + len(part)} of {len(samples)} dialogues are in {self._folder}"
                )

    @override
    def row(self, samples: Sequence[Sample]) -> TrainingRow:
        return self._row(samples, {name: self._read(name, samples) for name in (*self._names(), _BEST)})

    def _write(self, shard: str, keys: Sequence[str], samples: Sequence[Sample], row_tokens: int) -> bool:
        taps = {_name(tap): tap for tap in (*self._taps, _FINAL)}
        missing = [name for name in (*taps, _BEST) if not self._file(name, shard).is_file()]
        if not missing:
            return False
        wanted = [name for name in taps if name in missing or (name == _name(_FINAL) and _BEST in missing)]
        found: dict[str, dict[str, Tensor]] = {name: {} for name in missing}
        place = 0
        # Attention is computed for all pairs of a row, across documents too, so short rows cost less.
        on_cpu = self._target.device.type == "cpu"
        for row in pack(samples, min(row_tokens, _CPU_ROW) if on_cpu else row_tokens):
            states = dict(zip(wanted, self._compute(row, [taps[name] for name in wanted]), strict=True))
            if _BEST in missing:
                states[_BEST] = self._best(row, states[_name(_FINAL)])
            lengths = [len(sample.ids) for sample in row]
            for name in missing:
                pieces = torch.split(self._kept(name, states[name]), lengths)
                here = keys[place : place + len(row)]
                found[name].update({key: piece.clone() for key, piece in zip(here, pieces, strict=True)})
            place += len(row)
        for name, pieces_by_key in found.items():
            file = self._file(name, shard)
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            save_file(pieces_by_key, part)
            part.replace(file)
        return True

    def _kept(self, name: str, states: Tensor) -> Tensor:
        if not states.is_floating_point():
            return states.to("cpu", torch.int32)
        kept = states.to("cpu", self._dtype)
        if not kept.isfinite().all():
            raise ConfigError(
                f"training.features: the states {name} reach {float(states.abs().max()):.3g}, too large for"
                f" {self._dtype}; type training.features=null to compute them on the fly"
            )
        return kept

    def _read(self, name: str, samples: Sequence[Sample]) -> Tensor:
        pieces = []
        for sample in samples:
            key = _key(sample)
            file = self._file(name, self._shards[key])
            if file not in self._open:
                self._open[file] = safe_open(file, framework="pt")
            pieces.append(self._open[file].get_tensor(key))
        states = torch.cat(pieces).to(self._target.device)
        return states.to(torch.int64 if name == _BEST else self._target.dtype)

    def _file(self, name: str, shard: str) -> Path:
        return self._folder / name / f"{shard}.safetensors"


def _name(tap: Tap) -> str:
    """The name of a state, however it is numbered: a block reads what the block before it wrote."""
    if tap.point == "normed":
        return "final"
    if tap.point == "output" and tap.layer >= 0:
        return f"input-{tap.layer + 1}"
    return f"{tap.point}-{tap.layer}"


def _key(sample: Sample) -> str:
    return digest([list(sample.ids), [int(said) for said in sample.answer]])[:24]


def _answer(samples: Sequence[Sample], device: torch.device) -> Tensor:
    return torch.tensor([said for sample in samples for said in sample.answer], device=device)


def _laid_out(samples: Sequence[Sample], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, document numbers and positions [L] of dialogues laid one after the other."""
    ids = torch.tensor([token for sample in samples for token in sample.ids], device=device)
    lengths = torch.tensor([len(sample.ids) for sample in samples], device=device)
    document = torch.arange(len(samples), device=device).repeat_interleave(lengths)
    positions = torch.cat([torch.arange(len(sample.ids), device=device) for sample in samples])
    return ids, document, positions
