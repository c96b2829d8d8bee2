"""Target: the model whose words count. Prefill, verify a draft in one forward, commit what was accepted.

Shapes: B sequences, n drafted nodes, r riders, P prompt tokens, L cached tokens, C readable cache slots, H
hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from harness.config import ConfigError
from harness.drafting.draft import Draft
from harness.drafting.drafter import Tap
from harness.runtime import attention
from harness.runtime.cache import SlotCache
from harness.runtime.cuda_graphs import Captured
from harness.runtime.programs.regions import divide
from harness.runtime.programs.rounds import RoundPrograms
from harness.runtime.programs.step import SIZES, Program
from harness.runtime.torch_internals import any_sizes
from harness.runtime.verify_steps import Steps
from harness.runtime.write_plan import WritePlan
from harness.target.adapter import ModelAdapter
from harness.target.prefill import PromptFeeder
from harness.target.taps import Place, Taps

_SPARE = 256
"""Slots behind a whole sequence for what a round writes and drops, in the target's and the drafters'
caches."""


class Target(ModelAdapter):
    """A causal LM behind a slot cache: sequences, the choice of step, and taps; also the `TargetView` of
    drafters.

    The model is changed in place: on CUDA with compilation its blocks are wrapped, and its linear layers are
    replaced where `linear` says so. The modelling code itself stays transformers' own.
    """

    def __init__(
        self,
        model: Any,
        kernel: str = "grouped",
        linear: str = "plain",
        cache: str = "dynamic",
        compiled: bool = False,
    ):
        """`model`: a causal LM of full and sliding attention. `kernel`: grouped, sdpa or eager.

        linear: `plain` as torch multiplies; `packed`, `joined` (see `harness.runtime.packed_linear`);
        `auto`: whichever is possible.
        cache: the kinds of verify step, `dynamic`, `static`, or `auto` to choose among them. compiled:
        whether the static step may be compiled, too (see `harness.runtime.verify_steps`).

        Raises:
            ConfigError: a choice that this model or device does not allow.
        """
        super().__init__(model, kernel, linear, compiled)
        self.steps = Steps(cache, compiled, self._step, self.device)
        if compiled:
            model.requires_grad_(False)
        if self.steps.by_shape:
            if len({parameter.device for parameter in model.parameters()}) > 1:
                raise ConfigError(
                    "target.compile=true: captures steps on one GPU, the target has several;"
                    " type target.compile=false"
                )
            divide(model.get_decoder())
        elif compiled:
            self.steps.blocks.divide(model.get_decoder())
        self._caches = WeakSet[SlotCache]()
        self.cache = self.new_cache(self.masks.window)
        self._replayed = self.steps.captured(self._verify_given)
        self._taps = Taps(model, stay=compiled)
        self._feeder = PromptFeeder(self, self.cache, self._taps, self._forward)
        self.install()

    @property
    def remarks(self) -> list[str]:
        """What the user should know about how the model is run: what could not be built or compiled."""
        return [*self._remarks, *self.steps.remarks]

    def program(self, step: Callable[..., Any], sizes: Sequence[int] = SIZES) -> Program | None:
        """A step of a drafter's own model as one compiled program, where the target's steps are compiled."""
        return self.steps.program(step, sizes)

    def captured(
        self, function: Callable[..., Any], modules: Sequence[nn.Module], cache: SlotCache
    ) -> Captured | RoundPrograms | None:
        """Part of a drafter's round as CUDA graphs, or on a CPU as programs, where steps are compiled."""
        ends = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        rotary = getattr(self.model.get_decoder(), "rotary_emb", None)
        read = [*modules, *ends, *([] if rotary is None else [rotary])]
        return self.steps.captured(function) or self.steps.round_programs(function, read, cache)

    def new_cache(self, window: attention.Window | None = None) -> SlotCache:
        """A cache that `reserve` gives as much room as the target's own; window: of some of its layers."""
        cache = SlotCache(self.steps.captured, window)
        self._caches.add(cache)
        return cache

    def set_taps(self, taps: Sequence[Tap]) -> None:
        """From now on every forward records the states at `taps`; see `Taps.set_taps`."""
        self._taps.set_taps(taps)

    def reserve(self, num_tokens: int) -> None:
        """Give all caches room for `num_tokens` tokens at once, where graphs need memory that does not
        move."""
        if self.steps.by_shape:
            for cache in self._caches:
                cache.memory.reserved = num_tokens + _SPARE

    def begin(self, num_rows: int) -> None:
        """Forget every sequence; `num_rows` empty ones follow."""
        self.cache.clear(num_rows)

    def prefill(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], together: bool = True
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Feed m prompts to the sequences `rows`, which begin anew; see `PromptFeeder.feed`."""
        return self._feeder.feed(rows, prompts, together)

    @torch.no_grad()
    def verify(self, pending: Tensor, draft: Draft) -> Tensor:
        """Logits [B, 1+n+r, V] after the pending tokens [B], every node and every rider, in one forward."""
        num_rows = len(pending)
        most = self.steps.rows_for(num_rows)
        more = most - num_rows
        if more and self.cache.memory.allocated_rows >= most and self._kind(most, draft) == "compiled":
            with self.cache.with_empty_rows(most):
                logits = self._verify_as(pad(pending, (0, more)), draft.with_rows(more), "compiled")
            return logits[:num_rows]
        return self._verify_as(pending, draft, self._kind(num_rows, draft))

    def _kind(self, num_rows: int, draft: Draft) -> str:
        """The step that verifies this draft: the chosen one, or one that can carry its riders."""
        kind = self.steps.kind(num_rows, draft.width + draft.num_riders)
        # A graph is replayed with other tokens, parents and sizes, and has no place for riders.
        return "dynamic" if kind == "compiled" and draft.riders and self._replayed else kind

    def _verify_as(self, pending: Tensor, draft: Draft, kind: str) -> Tensor:
        if kind != "compiled" or self._replayed is None:
            return self._verify(pending, draft, kind)
        self.cache.make_room(1 + draft.width)
        logits, seen = self._replayed(
            *(pending, draft.tokens, draft.parents, draft.size, self.cache.base(self.device)),
            constants=[draft.is_chain, tuple(self._taps.places)],
            where=self.cache.where,
        )
        self._taps.seen.update(seen)
        return cast(Tensor, logits)

    def _verify_given(
        self, pending: Tensor, tokens: Tensor, parents: Tensor, size: Tensor, lengths: Tensor, *constants: Any
    ) -> tuple[Tensor, dict[Place, Tensor]]:
        """The captured part of `verify`; also returns the states that the taps have seen."""
        draft = Draft(tokens=tokens, parents=parents, size=size, is_chain=constants[0])
        with self.cache.lengths_on_device(lengths):
            return self._verify(pending, draft, "compiled"), dict(self._taps.seen)

    def _verify(self, pending: Tensor, draft: Draft, kind: str) -> Tensor:
        lengths = self.cache.known_lengths
        ids = torch.cat([pending[:, None], draft.forward_ids], dim=1)
        base = self.cache.base(pending.device)
        positions = base[:, None]
        if ids.shape[1] > 1:
            positions = torch.cat([positions, positions + draft.forward_offsets], dim=1)
        rows = slice(0, len(pending))
        if kind == "dynamic":
            return self._forward(ids, positions, self._mask(draft), rows)
        compiled = self.steps.forward if kind == "compiled" else None
        count = ids.shape[1]
        if compiled:
            self.cache.aim(WritePlan.program(lengths, count, self.device))
        else:
            self.cache.aim(WritePlan.static_decode(self.cache.lengths, count, self.device))
        seen = attention.tree_mask(lengths, draft.visible, self.cache.num_slots)
        mask = self.masks.over_slots(seen, positions, base)
        if compiled:
            # With hooks at other places it is another program.
            hooks = str(self._taps.places)
            logits: Tensor = compiled(ids, positions, mask=mask, cache=self.cache, variant=hooks)
            return logits
        return self._step(ids, positions, mask, self.cache)

    def states(self) -> list[Tensor]:
        """Per tap, the states [B, 1+n+r, H] that the last `verify` passed."""
        return self._taps.states()

    def taken(self, path: Tensor, length: Sequence[int]) -> list[Tensor]:
        """Per tap, the states [B, m, H] of the pending token and the accepted path; m = 1 + the longest path.

        The first 1 + length[b] states of sequence b count.
        """
        if not self._taps.watched:
            return []
        rows = pad(path[:, : max(length)] + 1, (1, 0))
        # There may be more states than rows: `gather` takes the first sequences, which are the real ones.
        return [state.gather(1, _wide(rows, state)) for state in self._taps.states()]

    def commit(self, path: Tensor | None, length: list[int]) -> None:
        """Keep the cache rows of the pending token and the accepted path, drop the rest of the draft."""
        self.cache.commit(path, length)

    def keep(self, rows: list[int]) -> None:
        """Continue with these sequences only, in this order."""
        self.cache.keep(rows)

    def _forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None, rows: slice, keep: int | list[int] = 0
    ) -> Tensor:
        """A forward that reads the slots in use; keep: see `_step`."""
        count, lengths = ids.shape[1], self.cache.lengths
        mask = self.masks.explicit(mask, lengths[rows.start], count, ids.device)
        fresh = self.steps.by_shape and mask is None and count > 1
        # The first forward of all allocates, block by block, and is not compiled.
        if fresh and self.cache.num_slots:
            self.cache.aim(WritePlan.fresh_prompt(lengths, rows, count, self.device))
        else:
            self.cache.aim(WritePlan.decode(lengths, rows, count, self.device))
        added = None if mask is None else self.masks.over_slots(mask, positions, lengths[rows])
        with any_sizes() if fresh else nullcontext():
            return self._step(ids, positions, added, self.cache, keep=keep)

    def _mask(self, draft: Draft) -> Tensor | None:
        """[B, 1, 1+n+r, C] bool: a row sees what is committed, and what `Draft.visible` says."""
        lengths = self.cache.lengths
        even = len(set(lengths)) == 1
        if draft.width + draft.num_riders == 0 and even and self.kernel == attention.GROUPED:
            return None
        return attention.tree_mask(lengths, draft.visible)


def _wide(rows: Tensor, states: Tensor) -> Tensor:
    """Row numbers [B, m] as an index into states [B, n, H], on the device of these."""
    return rows.to(states.device)[..., None].expand(-1, -1, states.shape[-1])
