"""ModelAdapter: a stock transformers causal LM with our kernel and linear layers, and what drafters see of
it.

Shapes: B sequences, n new tokens, C readable cache slots, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from harness.config import ConfigError
from harness.drafting.drafter import OwnParts, Tap
from harness.runtime import attention
from harness.runtime.cache import SlotCache
from harness.runtime.packed_linear import PackedLinear, kernel_problem, layout, pack, refresh
from harness.runtime.programs.regions import Region
from harness.target.footprint import resident_bytes
from harness.target.taps import Taps


class ModelAdapter:
    """The model itself: its facts, its embeddings and head, and plain forwards, without sequences or
    steps."""

    def __init__(self, model: Any, kernel: str, linear: str, compiled: bool = False) -> None:
        """`model`: a causal LM of full and sliding attention. kernel, linear: see `Target`.

        The linear layers are replaced by `install`, after whoever compiles has looked at the blocks.

        Raises:
            ConfigError: the kernel takes no tree mask, or the layers cannot multiply as asked for.
        """
        if kernel not in ("grouped", "sdpa", "eager"):
            raise ConfigError(
                f"target.attention={kernel}: cannot take the mask of a token tree."
                " Allowed: grouped, sdpa, eager."
            )
        attention.register()
        self.model = model
        self.kernel = attention.GROUPED if kernel == "grouped" else kernel
        self.masks = attention.MaskForm(attention.Window.of(self.config), self.kernel, self.dtype)
        """How the model takes its masks."""
        self._packed: list[PackedLinear] = []
        self._compiled = compiled
        possible = layout(model)
        if linear not in ("plain", "auto", possible):
            needs = {
                "packed": "float32 weights on a CPU and oneDNN",
                "joined": "all weights on one CUDA device",
            }
            raise ConfigError(f"target.linear={linear}: needs {needs[linear]}; type target.linear={possible}")
        self.linear = possible if linear == "auto" else linear
        """How the linear layers multiply: `plain`, `packed` or `joined`."""
        self._remarks: list[str] = []

    def install(self) -> None:
        """Replace the linear layers and switch to our kernel."""
        if self.linear != "plain":
            self._packed = pack(self.model, self._compiled)
        if self.linear == "packed" and not self._packed:
            self.linear = "plain"
            self._remarks.append(
                f"target.linear=plain: the kernel for few rows cannot be built ({kernel_problem()}), so the"
                " linear layers multiply as torch does"
            )
        self.use_kernel()

    def use_kernel(self, name: str | None = None) -> None:
        """Switch the model to attention kernel `name` (transformers' word for it); None is our own choice.

        Together with another kernel, the linear layers multiply as torch's own do.
        """
        self.model.set_attn_implementation(name or self.kernel)
        for layer in self._packed:
            layer.plain = name is not None

    def memory(self) -> dict[str, int]:
        """Resident bytes by category."""
        copies = sum(product.num_bytes for product in {layer.product for layer in self._packed})
        return {"weights": resident_bytes(self.model), **({"packed weights": copies} if copies else {})}

    def prepare(self, module: torch.nn.Module, field: str = "head") -> None:
        """Check a drafter's own module, and make its linear layers multiply as the target's do; see
        `TargetView.prepare`."""
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            num_wrong = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
            if num_wrong:
                raise ConfigError(
                    f"{field}: {num_wrong} of {tensor.numel()} weights in {name} are NaN or infinite, and"
                    " what it drafts would mean nothing; give another one, or train it again"
                )
        if self.linear == layout(module) != "plain":
            pack(module, self._compiled)

    def copied_model(self) -> Any:
        """A copy of the model; see `TargetView.copied_model`.

        Raises:
            ConfigError: layers have a sliding window, which one mask for all of them cannot say.
        """
        if self.masks.window is not None:
            raise ConfigError(
                f"target: {self.config.model_type} has layers of sliding attention, and the target itself is"
                " only trained with full attention in every layer; train a head instead"
            )
        with self.traced(()):
            copy = deepcopy(self.model)
        for module in copy.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        copy.set_attn_implementation("sdpa")
        return copy

    def refresh(self, module: torch.nn.Module) -> None:
        """The weights of a prepared module have changed; see `TargetView.refresh`."""
        refresh(module)

    @property
    def device(self) -> torch.device:
        """The device that token ids go to."""
        return torch.device(self.model.get_input_embeddings().weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    @property
    def vocab_size(self) -> int:
        """V, the length of a row of logits."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def config(self) -> Any:
        """The transformers configuration (text part); read only."""
        return self.model.config.get_text_config()

    @property
    def own_parts(self) -> OwnParts:
        """What the target's blocks are made of; see `TargetView.own_parts`."""
        return _own_parts(self.model.get_decoder(), self.config, self.masks)

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [..., H] of token ids [...]."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of final hidden states [..., H] (after the final norm)."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits

    @torch.no_grad()
    def trace(self, ids: Tensor, taps: Sequence[Tap]) -> tuple[Tensor, list[Tensor]]:
        """A plain causal forward over token ids [B, n], without a cache.

        Returns logits [B, n, V] and, per tap, the states [B, n, H].
        """
        with self.traced(taps) as traced:
            logits: Tensor = self.model(input_ids=ids.to(self.device), use_cache=False).logits
            return logits, traced.states()

    def replay(self) -> Callable[[Sequence[int]], Tensor]:
        """A function that takes the next tokens [n] of one sequence and gives the logits [n, V] after them.

        It is independent of the loop, and needs a kernel that takes any mask (`use_kernel`).
        """
        return _replayed(self.model, self.device)

    @torch.no_grad()
    def trace_visible(self, ids: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """A forward over tokens [n] that each see those of `visible` [n, n]; see
        `TargetView.trace_visible`."""
        with self.traced(()):
            outputs = self.model.get_decoder()(
                input_ids=ids[None],
                position_ids=positions[None],
                attention_mask=self.masks.between(positions[None], visible[None, None]),
                use_cache=False,
            )
        states: Tensor = outputs.last_hidden_state[0]
        return states

    @contextmanager
    def traced(self, taps: Sequence[Tap]) -> Iterator[Taps]:
        """For forwards of the model outside the loop: separate taps, and the kernel that takes any mask.

        All hooks are removed on exit; a leftover hook would make a compiled step another program.
        """
        traced = Taps(self.model, stay=False)
        try:
            self.use_kernel("sdpa")
            traced.set_taps(taps)
            yield traced
        finally:
            self.use_kernel()
            traced.set_taps(())

    def _step(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: attention.Masks | None,
        cache: SlotCache,
        keep: int | list[int] = 0,
    ) -> Tensor:
        """Logits of a forward over ids [B, n] at positions [B, n], with an aimed cache; also compiled.

        keep: the number of last tokens to compute logits of (0: all), or the places of these tokens.
        """
        logits: Tensor = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits


def _replayed(model: Any, device: torch.device) -> Callable[[Sequence[int]], Tensor]:
    cache = DynamicCache()

    @torch.no_grad()
    def feed(tokens: Sequence[int]) -> Tensor:
        if not tokens:
            return torch.empty(0)
        ids = torch.tensor([list(tokens)]).to(device)
        logits: Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[0]
        return logits

    return feed


def _own_parts(decoder: Any, config: Any, masks: attention.MaskForm) -> OwnParts:
    last = decoder.layers[-1]
    copied = deepcopy(config)
    # Blocks choose their kind by their number: this one is the first and the last, and like the trunk's last.
    if getattr(copied, "layer_types", None):
        copied.layer_types = ["full_attention"]
    if getattr(copied, "mlp_layer_types", None):
        copied.mlp_layer_types = copied.mlp_layer_types[-1:]
    if hasattr(copied, "first_k_dense_replace"):
        copied.first_k_dense_replace = 0
    copied.num_hidden_layers = 1
    copied._attn_implementation = masks.kernel
    return OwnParts(
        block=type(last.block if isinstance(last, Region) else last),
        norm=type(decoder.norm),
        config=copied,
        rotary=decoder.rotary_emb,
        as_mask=masks.added,
    )
