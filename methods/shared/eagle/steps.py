"""Steps of draft networks behind a cache; of a head: its layer over new rows, and the best children of
states.

They are compiled where the target's steps are (`target.compile=true`), captured as graphs on CUDA, and parts
of one program on a CPU.

Shapes: B sequences, n new rows, c children, C slots of the cache, H hidden size of the head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from harness.drafting.drafter import TargetView
from harness.drafting.trees import Proposals
from harness.runtime.attention import tree_mask
from harness.runtime.cache import SlotCache
from harness.runtime.write_plan import WritePlan
from methods.shared.eagle.heads.network import HeadNetwork

_SIZES = (1, 4, 8)
"""Numbers of rows that are compiled for on a CPU; each takes seconds."""
_SIZES_BY_SHAPE = (8, 64)
"""Numbers of pairs that are fed on CUDA, where a few cost as much as one; a round is captured for each."""
_MOST_PAIRS = 64
"""The most pairs that the program of a round is given on a CPU."""


class CachedSteps:
    """The step of a draft network over new rows, behind a cache.

    A row takes one slot of the cache or, where its network guesses several tokens from it, several.
    """

    further_modules: Sequence[nn.Module] = ()
    """Those outside the network whose weights a round multiplies with, but for the target's own."""

    def __init__(
        self,
        target: TargetView,
        step: Callable[..., Any],
        cache: SlotCache | None = None,
        sizes: Sequence[int] = _SIZES,
        slots_per_row: int = 1,
    ) -> None:
        """
        step: takes inputs [B, n, ...], the mask [B, 1, n * slots, C] and the cache. cache: None takes a new
        one, for rounds; with one that is given, nothing is compiled. sizes: numbers of rows to compile for on
        a CPU.
        """
        # Not `cache or ...`: a cache without layers is falsy.
        self.cache = target.new_cache() if cache is None else cache
        self.cache.memory.slots_per_token = slots_per_row
        self.slots_per_row = slots_per_row
        self._step = step
        self._program = target.program(step, sizes) if cache is None else None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of rows that are compiled for; empty where nothing is compiled."""
        if self._program is None:
            return ()
        return _SIZES_BY_SHAPE if self._program.by_shape else self._program.sizes

    def size_for(self, num_rows: int, num_new: int) -> int:
        """The number of rows to run for `num_new`: a few more where only those are compiled."""
        program = self._program
        if program is None or program.is_inlined or program.size_for(num_rows, num_new) is None:
            return num_new
        return next((size for size in self.sizes if size >= num_new), num_new)

    def captured_size(self, num_rows: int, num_new: int, levels: Sequence[int], num_more: int) -> int | None:
        """The number of rows to feed for `num_new` so that a round, these and then those of the tree, is one
        CUDA graph or program; None: it cannot be.

        levels: numbers of rows that the tree runs at once. num_more: rows that it runs in all.
        """
        cache, program = self.cache, self._program
        if program is None or num_rows != len(cache.lengths) or not cache.num_slots:
            return None
        if not program.by_shape:
            served = num_new <= _MOST_PAIRS and program.size_for(num_rows, 1) is not None
            return max(num_new, 2) if served else None
        size = next((size for size in self.sizes if size >= num_new), None)
        if size is None or not all(program.serves(num_rows, count) for count in (size, *levels)):
            return None
        most = max(cache.lengths) + (size + num_more) * self.slots_per_row
        return size if most <= cache.num_slots else None

    def forward(
        self, rows: slice, inputs: Sequence[Tensor], tree: Tensor, again: int = 0, plain: bool = False
    ) -> Any:
        """Run the step over n new rows of the sequences `rows`, which gives its output.

        Args:
            rows: the sequences.
            inputs: [B, n, ...] of the step.
            tree: [B, n * slots, e + n * slots] bool: which slots behind the cached ones each new slot sees,
            of e earlier ones and the new ones.
            again: cached slots at the end of every sequence that count as the first of those e slots,
            because not every row sees them.
            plain: never use a compiled program.
        """
        cache, (num_rows, num_new), device = self.cache, inputs[0].shape[:2], inputs[0].device
        count = num_new * self.slots_per_row
        lengths = cache.known_lengths[rows]
        whole = num_rows == len(cache.lengths) and cache.num_slots > 0
        compiled = self._program
        if compiled and (plain or not (whole and compiled.serves(num_rows, num_new))):
            compiled = None
        ahead = tree.shape[-1] - count - again
        seen: Sequence[int] | Tensor
        seen = lengths - again if isinstance(lengths, Tensor) else [length - again for length in lengths]
        if compiled is None:
            # Lengths that are on the device only belong to a graph or program, of steps that are served.
            cache.aim(WritePlan.decode(cache.lengths, rows, count, device, ahead))
            return self._step(*inputs, tree_mask(seen, tree), cache)
        cache.aim(WritePlan.program(lengths, count, device, ahead))
        mask = tree_mask(seen, tree, cache.num_slots)
        return compiled(*inputs, mask=mask, cache=cache)


class HeadSteps(CachedSteps):
    """A head behind a cache, as `Growth` runs it."""

    def __init__(self, target: TargetView, network: HeadNetwork, cache: SlotCache | None = None) -> None:
        """cache: see `CachedSteps`."""
        super().__init__(target, self._layer, cache)
        self._target, self.network = target, network
        self._bests = target.program(self._best, _SIZES) if cache is None else None

    def project(self, features: Tensor) -> Tensor:
        """First states [B, n, H] from features [B, n, F]."""
        return self.network.project(features)

    def run(
        self,
        rows: slice,
        tokens: Tensor,
        states: Tensor,
        offsets: Tensor,
        tree: Tensor,
        plain: bool = False,
    ) -> Tensor:
        """Run the head over n new rows of the sequences `rows`, which gives outputs [B, n, H].

        Args:
            rows: the sequences.
            tokens: [B, n] int64.
            states: [B, n, H].
            offsets: [B or 1, n], positions counted from the end of the cached pairs.
            tree: [B, n, e + n] bool: which rows behind the cached pairs each row sees, of e earlier ones and
            the n new ones.
            plain: never use a compiled program.
        """
        positions = (self.cache.base(tokens.device)[rows, None] + offsets).expand_as(tokens)
        outputs: Tensor = self.forward(rows, (tokens.contiguous(), states, positions), tree, plain=plain)
        return outputs

    def best(self, states: Tensor, num_children: int) -> Proposals:
        """The most probable tokens [B, n, c] after `states` [B, n, H]."""
        compiled = self._bests
        if compiled is None or not compiled.serves(*states.shape[:2]):
            return Proposals(*self._best(states, num_children))
        return Proposals(*compiled(states, constants=[num_children]))

    def score(self, states: Tensor) -> Tensor:
        """Logits [..., V] over the draft vocabulary."""
        return self.network.logits(states, self._target)

    def _layer(
        self, tokens: Tensor, states: Tensor, positions: Tensor, mask: Tensor, cache: SlotCache
    ) -> Tensor:
        return self.network.advance(tokens, states, positions, mask, cache, self._target)

    def _best(self, states: Tensor, num_children: int) -> tuple[Tensor, Tensor]:
        logits = self.score(states).float()
        best = logits.topk(num_children, dim=-1)
        # Log-probabilities in float32 and at most 0, so that no child outscores its parent.
        log_probs = best.values - logits.logsumexp(-1, keepdim=True)
        return self.network.target_ids(best.indices), log_probs
