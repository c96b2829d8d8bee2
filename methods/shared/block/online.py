"""Training a block drafter while it drafts: the guesses of its last block, computed again with a gradient.

Context rows stay as they were cached, under the weights of their time. Only the last one is computed again,
so that the layer that reads the target's features learns as well, and the whole block behind it.

Shapes: m rows of guesses, n rows of a block, F width of the target's features, D head dimension, K key heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.draft import Draft
from harness.drafting.drafter import TargetView
from harness.drafting.online import OnlineDrafter
from methods.shared.block.drafter import BlockDrafter
from methods.shared.block.draw import corrected_logits
from methods.shared.block.networks.network import BlockNetwork
from methods.shared.block.steps import seen
from methods.shared.learned import LearnedCopy, draft_vocabulary


@configurable
class OnlineBlock(BlockDrafter, OnlineDrafter):
    """A `BlockDrafter` that can be trained while it drafts one sequence."""

    @override
    def bind(self, target: TargetView) -> None:
        self._copy: LearnedCopy[BlockNetwork] | None = None
        super().bind(target)

    @property
    @override
    def draft_vocabulary(self) -> Tensor | None:
        return draft_vocabulary(self.network, self._target.device)

    @override
    def begin_learning(self) -> torch.nn.Module:
        """The network in float32. What no gradient of a guess reaches keeps its weights, as do the copies of
        the target's embedding and LM head.

        Raises:
            ConfigError: the head chooses among candidates, whose scores are no distribution over tokens.
        """
        network = self.network
        if network.candidate_selector is not None:
            raise ConfigError(
                f"head={self.head}: a dflash2 head scores a few candidates instead of all tokens, and cannot"
                " be trained while it drafts; name a dflash or dspark head"
            )
        untrained = (network.embed_tokens, network.lm_head, network.confidence_head)
        frozen = [one for part in untrained if part is not None for one in part.parameters()]
        self._copy = LearnedCopy(network, network.fc.weight, frozen)
        self._learned = self._copy.network
        return self._learned

    @override
    def output_parameters(self) -> Sequence[torch.nn.Parameter]:
        correction = self._learned.markov_head
        return [] if correction is None else list(correction.parameters())

    @override
    def recall(self, draft: Draft, rows: Tensor) -> Callable[[], Tensor]:
        assert self._copy is not None, "begin_learning comes first"
        end = self._steps.cache.lengths[0]
        buffers = [self._steps.cache.buffers(layer) for layer in range(self.network.shape.num_layers)]
        return _Recall(
            network=self._learned,
            target=self._target,
            feature=self._copy.features(self._last_feature),
            past=[
                (keys[:1, :, : end - 1].float(), values[:1, :, : end - 1].float()) for keys, values in buffers
            ],
            ids=self.ids[:1],
            draft=draft,
            rows=rows,
        )

    @override
    def publish(self) -> None:
        assert self._copy is not None, "begin_learning comes first"
        self._copy.put_back()
        self._target.refresh(self.network)

    @override
    def _take(self, features: Tensor, counts: Sequence[int], row: int | None = None) -> None:
        if self._copy is not None:
            # Row 0 alone, because training decodes one sequence at a time.
            self._last_feature = features[:1, counts[0] - 1 : counts[0]].clone()
        super()._take(features, counts, row)


@dataclass(frozen=True)
class _Recall:
    """The guesses after some rows of a draft, with the weights that the network has when it is called."""

    network: BlockNetwork
    target: TargetView
    feature: Tensor
    """[1, 1, F]: of the last committed token."""
    past: Sequence[tuple[Tensor, Tensor]]
    """Per layer, keys and values [1, K, c, D] of the context rows before; constant."""
    ids: Tensor
    """[1, n] int64: the block's inputs."""
    draft: Draft
    rows: Tensor

    def __call__(self) -> Tensor:
        """Logits [m, V]."""
        network, draft = self.network, self.draft
        states = self._states()[:, network.shape.first_slot :]
        slots = torch.nn.functional.pad(draft.depths[0], (1, 0))[self.rows]
        if network.markov_head is None or not draft.is_chain:
            # Trees are drafted from the slots' own distributions.
            return network.logits(states[0, slots], self.target)
        # The token before a slot is the node before it.
        previous = torch.cat([self.ids[:, :1], draft.tokens[:1]], dim=1)[:, : draft.width]
        return corrected_logits(network, self.target, states[:, : draft.width], previous)[0, slots]

    def _states(self) -> Tensor:
        """[1, n, H]: the states of the block."""
        network, shape, device = self.network, self.network.shape, self.ids.device
        begin = self.past[0][0].shape[2] + 1
        place = torch.full((1, 1), begin - 1, device=device)
        context = network.context(network.project(self.feature), place)
        positions = torch.arange(begin, begin + self.ids.shape[1], device=device)
        keys_at = torch.arange(begin + self.ids.shape[1], device=device)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys = torch.cat([self.past[layer][0], context[layer][0], key], dim=2)
            values = torch.cat([self.past[layer][1], context[layer][1], value], dim=2)
            mask = seen(shape, shape.causal[layer], shape.sliding[layer], positions, positions[:1], keys_at)
            is_grouped = query.shape[1] != keys.shape[1]
            output = scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=is_grouped)
            return output.transpose(1, 2)

        states: Tensor = network(network.embed(self.ids, self.target), positions[None], attend)
        return states
