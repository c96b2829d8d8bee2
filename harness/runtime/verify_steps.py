"""Steps: the kinds of forward that can verify a draft, the choice among them, and their programs.

`dynamic` reads the cache slots in use; `static` reads all allocated slots, so that every step is the same
program; `compiled` is the static step as a `Program`, on CUDA within a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness.config import ConfigError
from harness.runtime.cache import SlotCache
from harness.runtime.cuda_graphs import Captured
from harness.runtime.programs.blocks import BlockPrograms
from harness.runtime.programs.rounds import RoundPrograms
from harness.runtime.programs.step import SIZES, Program
from harness.runtime.torch_internals import num_programs

_KINDS = {
    ("dynamic", False): ("dynamic",),
    ("static", False): ("static",),
    ("static", True): ("compiled",),
    ("auto", False): ("dynamic", "static"),
    ("auto", True): ("dynamic", "static", "compiled"),
}
"""By target.cache and target.compile: the kinds to choose among, the simplest first."""


class Steps:
    """The steps of a target and of the drafters' own models.

    kinds: the kinds to choose among. forward: the target's own program, if it may be compiled.
    """

    def __init__(self, cache: str, compiled: bool, forward: Callable[..., Any], device: torch.device) -> None:
        """`forward`: the target's step, of which programs are made; see `Program`.

        Raises:
            ConfigError: there is no static step to compile, or nothing to compile with.
        """
        if compiled and cache == "dynamic":
            raise ConfigError("target.compile=true: compiles a static step; type target.cache=auto")
        self.kinds = _KINDS[cache, compiled]
        self._by_width: Sequence[str] = self.kinds[:1]
        self._device = device
        self._programs: list[Program] = []
        self._captured: list[Captured] = []
        self._rounds: list[RoundPrograms] = []
        self.blocks = BlockPrograms()
        """The programs of the target's blocks on a CPU."""
        self.forward = self.program(forward, SIZES, divided=True)

    def program(
        self, step: Callable[..., Any], sizes: Sequence[int], divided: bool = False
    ) -> Program | None:
        """Make a program of a step; None where nothing is compiled. divided: see `Program`."""
        if "compiled" not in self.kinds:
            return None
        program = Program(step, self._device, sizes, divided)
        # Where there is a choice, nothing is compiled before the choice was made.
        program.num_rows = None if len(self.kinds) == 1 else 0
        self._programs.append(program)
        return program

    def captured(
        self, function: Callable[..., Any], tame: Callable[..., Sequence[Tensor]] | None = None
    ) -> Captured | None:
        """A part of a round as CUDA graphs, see `Captured`; None where programs are not captured."""
        if not self.by_shape:
            return None
        self._captured.append(Captured(function, tame))
        return self._captured[-1]

    def round_programs(
        self, function: Callable[..., Any], modules: Sequence[nn.Module], cache: SlotCache
    ) -> RoundPrograms | None:
        """A drafter's part of a round as programs, see `RoundPrograms`; None where it is captured or nothing
        is compiled."""
        if "compiled" not in self.kinds or self._device.type != "cpu":
            return None
        self._rounds.append(RoundPrograms(function, modules, cache, self._inlined))
        return self._rounds[-1]

    @contextmanager
    def _inlined(self) -> Iterator[None]:
        for program in self._programs:
            program.is_inlined = True
        try:
            yield
        finally:
            for program in self._programs:
                program.is_inlined = False

    @property
    def remarks(self) -> list[str]:
        """What could not be compiled as it should be, for the user."""
        whole = self.forward.remark if self.forward else None
        rounds = [
            f"target.compile=true: the rounds of a head are no single program ({one.problem}). Its steps are"
            " compiled one by one, and take longer"
            for one in self._rounds
            if one.problem
        ]
        return list(dict.fromkeys([*([whole] if whole else []), *rounds]))

    def choose(self, by_width: Sequence[str], num_rows: int) -> None:
        """From now on a draft of n nodes is verified by `by_width[n]`, one of `kinds`; wider by the last.

        num_rows: other numbers of sequences are not compiled for, their steps are dynamic.
        """
        self._by_width = by_width
        for program in self._programs:
            program.num_rows = num_rows

    @contextmanager
    def only(self, kind: str) -> Iterator[None]:
        """Within it every step is of this kind, whatever was chosen, for batches of any size."""
        chosen, self._by_width = self._by_width, (kind,)
        served = [program.num_rows for program in self._programs]
        for program in self._programs:
            program.num_rows = None
        try:
            yield
        finally:
            self._by_width = chosen
            for program, num_rows in zip(self._programs, served, strict=True):
                program.num_rows = num_rows

    def kind(self, num_rows: int, width: int) -> str:
        """The kind of step for `num_rows` sequences and `width` tokens behind each pending one."""
        kind = self._by_width[min(width, len(self._by_width) - 1)]
        return "dynamic" if kind == "compiled" and not self.compiles(num_rows, width) else kind

    def rows_for(self, num_rows: int) -> int:
        """The rows of a compiled step for `num_rows` sequences: a batch that has shrunk keeps its program."""
        chosen = self.forward.num_rows if self.forward else None
        return max(num_rows, chosen or 0)

    def compiles(self, num_rows: int, width: int) -> bool:
        """Whether there is a compiled step for `num_rows` sequences and `width` tokens behind each pending
        one."""
        return self.forward is not None and self.forward.serves(num_rows, 1 + width)

    @property
    def by_shape(self) -> bool:
        """Whether every number of tokens has a program of its own, captured as part of a graph."""
        return self.forward is not None and self.forward.by_shape

    @property
    def num_programs(self) -> int:
        """The number of programs compiled and graphs captured so far."""
        captured = sum(part.num_graphs for part in self._captured)
        rounds = sum(part.num_programs for part in self._rounds)
        return num_programs() + self.blocks.num_programs + captured + rounds if self._programs else 0
