"""Target: the model whose words count. Prefill, verify a draft in one forward, commit what was accepted.

Shapes: B sequences, n drafted nodes, P prompt tokens, L cached tokens, C readable cache slots, H hidden size,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.config import ConfigError
from harness.drafting.draft import Draft
from harness.drafting.drafter import Tap
from harness.runtime import attention
from harness.runtime.cache import SlotCache
from harness.runtime.compiled_blocks import any_sizes, divide
from harness.runtime.compiled_step import SIZES, Program
from harness.runtime.cuda_graphs import Captured
from harness.runtime.packed_linear import PackedLinear, layout, pack
from harness.runtime.verify_steps import Steps
from harness.target.footprint import resident_bytes
from harness.target.prefill_groups import CHUNK, groups, padded
from harness.target.taps import Place, Taps

_SPARE = 256
"""Slots behind a whole sequence for what a round writes and drops, a drafter's in its own cache too."""


class Target:
    """A stock transformers causal LM behind a slot cache; also the `TargetView` that drafters see.

    linear: how its linear layers multiply: plain, packed or joined.
    """

    def __init__(
        self,
        model: Any,
        kernel: str = "grouped",
        linear: str = "plain",
        cache: str = "dynamic",
        compiled: bool = False,
    ):
        """`model`: a causal LM with full attention in every layer. `kernel`: grouped, sdpa or eager.

        linear: `plain` as torch multiplies; `packed`, `joined` (see `harness.runtime.packed_linear`);
        `auto`: what can be.
        cache: of a verify step; `dynamic`, `static`, or `auto`: what `steps` are told. compiled: the static
        step may be compiled, too (see `harness.runtime.verify_steps`).
        """
        if kernel not in ("grouped", "sdpa", "eager"):
            raise ConfigError(
                f"target.attention={kernel}: cannot take the mask of a token tree."
                " Allowed: grouped, sdpa, eager."
            )
        attention.register()
        self.model = model
        self.kernel = attention.GROUPED if kernel == "grouped" else kernel
        self._packed: list[PackedLinear] = []
        can_be = layout(model)
        if linear not in ("plain", "auto", can_be):
            needs = {
                "packed": "float32 weights on a CPU and oneDNN",
                "joined": "all weights on one CUDA device",
            }
            raise ConfigError(f"target.linear={linear}: needs {needs[linear]}; type target.linear={can_be}")
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
        self.linear = can_be if linear == "auto" else linear
        if self.linear != "plain":
            self._packed = pack(model)
        self._caches = WeakSet[SlotCache]()
        self.cache = self.new_cache()
        self._replayed = self.steps.captured(self._verify_given)
        self._taps = Taps(model, stay=compiled)
        self.use_kernel()

    def use_kernel(self, name: str | None = None) -> None:
        """Switch the model to attention kernel `name` (transformers' word for it); None is our own choice.

        With somebody else's kernel go torch's own linear layers.
        """
        self.model.set_attn_implementation(name or self.kernel)
        for layer in self._packed:
            layer.plain = name is not None

    def memory(self) -> dict[str, int]:
        """Bytes that stay, by what they hold."""
        copies = sum(product.num_bytes for product in {layer.product for layer in self._packed})
        return {"weights": resident_bytes(self.model), **({"packed weights": copies} if copies else {})}

    def prepare(self, module: torch.nn.Module) -> None:
        """See `TargetView`."""
        if self.linear == layout(module) != "plain":
            pack(module)

    def program(self, step: Callable[..., Any], sizes: Sequence[int] = SIZES) -> Program | None:
        """See `TargetView`."""
        return self.steps.program(step, sizes)

    def captured(self, function: Callable[..., Any]) -> Captured | None:
        """See `TargetView`."""
        return self.steps.captured(function)

    def new_cache(self) -> SlotCache:
        """See `TargetView`."""
        cache = SlotCache(self.steps.captured)
        self._caches.add(cache)
        return cache

    @property
    def device(self) -> torch.device:
        """See `TargetView`; where token ids go in."""
        return torch.device(self.model.get_input_embeddings().weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """See `TargetView`."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    @property
    def vocab_size(self) -> int:
        """See `TargetView`."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def config(self) -> Any:
        """See `TargetView`."""
        return self.model.config.get_text_config()

    def embed(self, ids: Tensor) -> Tensor:
        """See `TargetView`."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def lm_head(self, hidden: Tensor) -> Tensor:
        """See `TargetView`."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits

    def watch(self, taps: Sequence[Tap]) -> None:
        """See `Taps.watch`."""
        self._taps.watch(taps)

    @torch.no_grad()
    def trace(self, ids: Tensor, taps: Sequence[Tap]) -> tuple[Tensor, list[Tensor]]:
        """See `TargetView`."""
        with self.traced(taps) as traced:
            logits: Tensor = self.model(input_ids=ids.to(self.device), use_cache=False).logits
            return logits, traced.states()

    @contextmanager
    def traced(self, taps: Sequence[Tap]) -> Iterator[Taps]:
        """For forwards of the model beside the loop: taps of their own, in the kernel that takes any mask.

        None is left: with other hooks a compiled step is another program.
        """
        traced = Taps(self.model, stay=False)
        try:
            self.use_kernel("sdpa")
            traced.watch(taps)
            yield traced
        finally:
            self.use_kernel()
            traced.watch(())

    def reserve(self, num_tokens: int) -> None:
        """Where memory must stay where it is: give all caches room for so many tokens at once."""
        if self.steps.by_shape:
            for cache in self._caches:
                cache.reserve(num_tokens + _SPARE)

    def begin(self, num_rows: int) -> None:
        """Forget every sequence; `num_rows` empty ones follow."""
        self.cache.clear(num_rows)

    @torch.no_grad()
    def prefill(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], together: bool = True
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Feed m prompts to the sequences `rows`, which begin anew: logits [m, V] after them.

        And per prompt, per tap its states [P, H]. together: those of one of `prompts.groups` share a forward.
        """
        logits, states = [], []
        alone = (slice(number, number + 1) for number in range(len(rows)))
        for part in groups(rows, [len(prompt) for prompt in prompts]) if together else alone:
            last, seen = self._prefill(rows[part.start], prompts[part])
            logits.append(last)
            states += seen
        return torch.cat(logits), states

    def _prefill(self, row: int, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, list[list[Tensor]]]:
        """Prompts in one forward, from sequence `row` on; a long one alone, in chunks."""
        rows, lengths = slice(row, row + len(prompts)), [len(prompt) for prompt in prompts]
        ids = torch.tensor(padded(prompts), dtype=torch.int64).to(self.device)
        self.cache.lengths[rows] = [0] * len(prompts)
        even, start = len(set(lengths)) == 1, 0
        # Numbers, not a tensor: the last block may lie on another device.
        last_positions = [length - 1 for length in lengths]
        pieces: list[list[Tensor]] = [[] for _ in self._taps.watched]
        for chunk in torch.split(ids, CHUNK, dim=1):
            count = chunk.shape[1]
            mask = None
            if start or (self.kernel != attention.GROUPED):
                mask = torch.ones(count, start + count, dtype=torch.bool, device=self.device)
                mask = mask.tril(start)[None, None]
            positions = torch.arange(start, start + count, device=self.device)[None].expand_as(chunk)
            logits = self._forward(chunk, positions, mask, rows, 1 if even else last_positions)
            start += count
            self.cache.lengths[rows] = [min(length, start) for length in lengths]
            for piece, state in zip(pieces, self._taps.states(), strict=True):
                piece.append(state)
        # Of prompts of several lengths there are logits after the last token of each, in every row.
        if not even and logits.shape[1] != len(prompts):
            raise ConfigError(
                "target.trust_remote_code: the model does not heed logits_to_keep; type measure.batch_size=1"
            )
        last = logits[:, -1] if even else logits.diagonal().T
        whole = [torch.cat(piece, dim=1) if len(piece) > 1 else piece[0] for piece in pieces]
        return last, [[state[i, :length] for state in whole] for i, length in enumerate(lengths)]

    @torch.no_grad()
    def verify(self, pending: Tensor, draft: Draft) -> Tensor:
        """Logits [B, 1+n+r, V] after the pending tokens [B], every node and every rider, in one forward."""
        num_rows = len(pending)
        most = self.steps.rows_for(num_rows)
        more = most - num_rows
        if more and self.cache.allocated_rows >= most and self._kind(most, draft) == "compiled":
            with self.cache.widened(most):
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
        """What is captured: also the states that taps have seen."""
        draft = Draft(tokens=tokens, parents=parents, size=size, is_chain=constants[0])
        with self.cache.given(lengths):
            return self._verify(pending, draft, "compiled"), dict(self._taps.seen)

    def _verify(self, pending: Tensor, draft: Draft, kind: str) -> Tensor:
        lengths = self.cache.known_lengths
        ids = torch.cat([pending[:, None], draft.forward_ids], dim=1)
        base = self.cache.base(pending.device)[:, None]
        positions = base if ids.shape[1] == 1 else torch.cat([base, base + draft.forward_offsets], dim=1)
        rows = slice(0, len(pending))
        if kind == "dynamic":
            return self._forward(ids, positions, self._mask(draft), rows)
        compiled = self.steps.forward if kind == "compiled" else None
        self.cache.aim(rows, ids.shape[1], self.device, whole=True, indexed=compiled is not None)
        mask = self._as_added(attention.tree_mask(lengths, draft.visible, self.cache.num_slots))
        if compiled:
            places = str(self._taps.places)
            logits: Tensor = compiled(ids, positions, mask=mask, cache=self.cache, constants=[places])
            return logits
        return self._step(ids, positions, mask, self.cache)

    def taken(self, path: Tensor, length: Sequence[int]) -> list[Tensor]:
        """Per tap, the states [B, m, H] of the pending token and the accepted path; m = 1 + the longest path.

        Of sequence b the first 1 + length[b] count.
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
        """Only these sequences go on, in this order."""
        self.cache.keep(rows)

    def _forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None, rows: slice, keep: int | list[int] = 0
    ) -> Tensor:
        """keep: logits of so many last tokens (0: of all), or of the tokens at these places."""
        count = ids.shape[1]
        fresh = self.steps.by_shape and mask is None and count > 1
        self.cache.aim(rows, count, self.device, fresh=fresh)
        added = None if mask is None else self._as_added(mask)
        with any_sizes() if fresh else nullcontext():
            return self._step(ids, positions, added, self.cache, keep=keep)

    def _step(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        cache: SlotCache,
        places: str = "any",
        keep: int | list[int] = 0,
    ) -> Tensor:
        """The forward, or what is compiled of it; with hooks at other places it is another program."""
        assert places
        logits: Tensor = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits

    def _as_added(self, mask: Tensor) -> Tensor:
        """The mask as the kernel takes it: the eager kernels of transformers add it."""
        if self.kernel != "eager":
            return mask
        least = torch.finfo(self.dtype).min
        return torch.zeros(mask.shape, dtype=self.dtype, device=mask.device).masked_fill(~mask, least)

    def _mask(self, draft: Draft) -> Tensor | None:
        """[B, 1, 1+n+r, C] bool: a row sees what is committed, and what `Draft.visible` says."""
        lengths = self.cache.lengths
        even = len(set(lengths)) == 1
        if draft.width + draft.num_riders == 0 and even and self.kernel == attention.GROUPED:
            return None
        return attention.tree_mask(lengths, draft.visible)


def _wide(rows: Tensor, states: Tensor) -> Tensor:
    """Row numbers [B, m] as an index into states [B, n, H], where these lie."""
    return rows.to(states.device)[..., None].expand(-1, -1, states.shape[-1])
