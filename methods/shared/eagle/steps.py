"""The two steps of a draft head: its layer over new rows, and the best children of states.

They are compiled where the target's steps are (`target.compile=true`), and captured as graphs on CUDA.

Shapes: B sequences, n new rows, c children, C slots of the cache, H hidden size of the head, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

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


class HeadSteps:
    """A head behind a cache, as `Growth` runs it."""

    def __init__(self, target: TargetView, network: HeadNetwork, cache: SlotCache | None = None) -> None:
        """cache: None takes a new one, for rounds; with one that is given, nothing is compiled."""
        self._target, self.network = target, network
        # Not `cache or ...`: a cache without layers is falsy.
        self.cache = target.new_cache() if cache is None else cache
        self._layers = target.program(self._layer, _SIZES) if cache is None else None
        self._bests = target.program(self._best, _SIZES) if cache is None else None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of rows that are compiled for; empty where nothing is compiled."""
        if self._layers is None:
            return ()
        return _SIZES_BY_SHAPE if self._layers.by_shape else self._layers.sizes

    def size_for(self, num_rows: int, num_new: int) -> int:
        """The number of rows to run for `num_new`: a few more where only those are compiled."""
        if self._layers is None or self._layers.size_for(num_rows, num_new) is None:
            return num_new
        return next((size for size in self.sizes if size >= num_new), num_new)

    def captures(self, num_rows: int, num_new: int, level: int, num_more: int) -> bool:
        """Whether a round can be a CUDA graph: num_new rows are fed, num_more expanded, `level` at a time."""
        cache, layers = self.cache, self._layers
        if layers is None or not layers.by_shape or not cache.num_slots:
            return False
        served = num_rows == len(cache.lengths) and all(layers.serves(num_rows, n) for n in (num_new, level))
        return served and num_new in self.sizes and max(cache.lengths) + num_new + num_more <= cache.num_slots

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
        cache, num_new = self.cache, tokens.shape[1]
        lengths = cache.known_lengths[rows]
        positions = (cache.base(tokens.device)[rows, None] + offsets).expand_as(tokens)
        whole = len(lengths) == len(cache.lengths) and cache.num_slots > 0
        compiled = self._layers
        if compiled and (plain or not (whole and compiled.serves(len(lengths), num_new))):
            compiled = None
        ahead = tree.shape[-1] - num_new
        if compiled is None:
            # Lengths that are on the device only belong to a graph, which is made of compiled steps.
            cache.aim(WritePlan.decode(cache.lengths, rows, num_new, tokens.device, ahead))
            return self._layer(tokens, states, positions, tree_mask(lengths, tree), cache)
        cache.aim(WritePlan.program(lengths, num_new, tokens.device, ahead))
        mask = tree_mask(lengths, tree, cache.num_slots)
        outputs: Tensor = compiled(tokens.contiguous(), states, positions, mask=mask, cache=cache)
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
