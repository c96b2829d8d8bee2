"""The network of P-EAGLE (arXiv 2602.01469): an EAGLE-3 head with more layers and a learned hidden state.

The rows behind the pending token have no feature of the target and no token yet. They read `mask_hidden`,
which goes through the norms and `fc` as a feature does, and the embedding of a mask token. Attention is
causal, so one call drafts the chain.

Shapes: B sequences, n rows, H hidden size, F width of the target's features, A attention heads, K key heads,
D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.config import ConfigError
from harness.drafting.drafter import TargetView
from methods.shared.eagle.checkpoint import (
    TargetFacts,
    official_config,
    random_head,
    with_vocabulary_maps,
    write_files,
)
from methods.shared.eagle.config import parse_config
from methods.shared.eagle.heads.architectures import head_shape
from methods.shared.eagle.heads.base import HeadShape
from methods.shared.eagle.heads.eagle3 import Eagle3Head
from methods.shared.eagle.heads.filling import refuse_differences, vocabulary_map
from methods.shared.eagle.heads.layer import PlainLayer
from methods.shared.head_files import read_head

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Maps a layer's number, query [B, A, n, D], key and value [B, K, n, D] (rotated) to [B, n, A, D]."""


class PEagleNetwork(nn.Module):
    """An EAGLE-3 head, further layers and the hidden state of rows without a feature."""

    def __init__(self, shape: HeadShape, num_more: int) -> None:
        """num_more: layers after the head's own."""
        super().__init__()
        self.head = Eagle3Head(shape)
        self.more = nn.ModuleList(PlainLayer(shape) for _ in range(num_more))
        self.mask_hidden = nn.Parameter(torch.zeros(1, 1, shape.feature_size))

    @property
    def shape(self) -> HeadShape:
        """The sizes of the head."""
        return self.head.shape

    def forward(
        self,
        features: Tensor,
        tokens: Tensor,
        masked: Tensor,
        positions: Tensor,
        target: TargetView,
        attend: Attend,
    ) -> Tensor:
        """States [B, n, H], before the final norm, that draft the token behind each row.

        Args:
            features: [B, n, F], arbitrary in masked rows.
            tokens: [B, n] int64, the token after each feature; the mask token in masked rows.
            masked: [B, n] bool, rows without a feature.
            positions: [B, n] int64.
            target: gives the embeddings, where the head has none.
            attend: the attention of a layer.
        """
        head = self.head
        read = torch.where(masked[..., None], self.mask_hidden.to(features.dtype), features)
        states = head.project(read)
        embed = head.embed_tokens or target.embed
        embedded = embed(tokens).to(states.dtype)
        rotation = head.rotary(states, positions)
        for number, layer in enumerate((head.layer, *self.more)):
            states = layer(embedded, states, rotation, _of_layer(attend, number), None)
        return states

    def logits(self, states: Tensor, target: TargetView) -> Tensor:
        """Logits [..., V] over the draft vocabulary, from states [..., H]."""
        head = self.head
        normed = head.norm(states)
        if head.lm_head is None:
            return target.lm_head(normed.to(target.dtype)).to(states.device)
        logits: Tensor = head.lm_head(normed)
        return logits

    def place(self, device: torch.device, dtype: torch.dtype) -> PEagleNetwork:
        """Prepare for drafting on `device`."""
        self.mask_hidden.data = self.mask_hidden.data.to(dtype)
        for part in (self.head, self.more):
            for parameter in part.parameters():
                parameter.data = parameter.data.to(dtype)
        self.to(device)
        return self.eval().requires_grad_(False)


def _of_layer(attend: Attend, number: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda query, key, value: attend(number, query, key, value)


def load_network(
    path: str, revision: str | None, mask_token_id: int | None, dtype: torch.dtype, device: torch.device
) -> tuple[PEagleNetwork, int, dict[str, Any]]:
    """The head in the folder, or at the hub id, `path`, its mask token and its card.

    mask_token_id: None takes what config.json says. The card holds path, revision, sha256, and the blocks of
    the target that config.json names.

    Raises:
        ConfigError: there is no such head, it cannot be read, is incomplete or contradicts itself.
    """
    where = f"head={path}"
    files = read_head(path, revision, where)
    config = parse_config(files.config, where)
    mask = files.config.get("mask_token_id") if mask_token_id is None else mask_token_id
    if not isinstance(mask, int):
        raise ConfigError(f"{where}: its config.json has no mask_token_id; type mask_token_id=N")
    tensors, num_more = _named(files.tensors)
    if "mask_hidden" not in tensors:
        raise ConfigError(f"{where}: has no mask_hidden, so it is no P-EAGLE head. Type method=eagle3.")
    inner = {name.removeprefix("head."): one for name, one in tensors.items() if name.startswith("head.")}
    maps: dict[str, Tensor] = {name: inner.pop(name) for name in ("d2t", "t2d") if name in inner}
    shapes = {name: tuple(one.shape) for name, one in inner.items()}
    shape = head_shape(config, shapes, where, asked="eagle3")
    with torch.device("meta"):
        network = PEagleNetwork(shape, num_more)
    state = {name: one for name, one in tensors.items() if name not in ("head.d2t", "head.t2d")}
    state["head.d2t"] = vocabulary_map(maps, shape.draft_vocab_size, shape.vocab_size, where)
    refuse_differences(network, state, where)
    # Copied, because a mapped file would have to stay unchanged as long as the head lives.
    network.load_state_dict({name: one.clone() for name, one in state.items()}, assign=True)
    network.head.rotary = type(network.head.rotary)(network.head.rotary.config)
    card = {**files.card, "aux_layers": list(config.aux_layers or ()), "mask_token_id": mask}
    return network.place(device, dtype), mask, card


def random_network(
    target: TargetView,
    num_layers: int,
    mask_token_id: int | None,
    dtype: torch.dtype,
    seed: int,
    draft_vocab_size: int | None = None,
) -> tuple[PEagleNetwork, int, dict[str, Any]]:
    """A head with random weights and the sizes of a real one for `target`, its mask token and its card.

    mask_token_id: None takes the last id of the vocabulary. Torch's random state is left as it was.
    """
    config = target.config
    facts = TargetFacts(
        hidden_size=config.hidden_size, vocab_size=target.vocab_size, num_layers=config.num_hidden_layers
    )
    like = random_head(
        architecture="eagle3",
        target=facts,
        like=config,
        draft_vocab_size=draft_vocab_size,
        dtype=dtype,
        device=target.device,
        seed=seed,
    ).head
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the generators of all accelerators too.
        torch.default_generator.manual_seed(seed)
        network = PEagleNetwork(like.shape, num_layers - 1)
        nn.init.normal_(network.mask_hidden)
    network.head.load_state_dict(like.state_dict())
    mask = target.vocab_size - 1 if mask_token_id is None else mask_token_id
    return network.place(target.device, dtype), mask, {"path": None, "seed": seed, "mask_token_id": mask}


def _named(written: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The tensors under their names in `PEagleNetwork`, and the number of layers after the first."""
    named, more = {}, set()
    for name, tensor in written.items():
        short = name.removeprefix("model.")
        if short.startswith("verifier_") or short.endswith("rotary_emb.inv_freq"):
            continue  # the target's, or computed
        part, _, rest = short.removeprefix("layers.").partition(".")
        if short.startswith("layers.") and part == "0":
            short = f"head.layer.{rest}"
        elif short.startswith("layers.") and part.isdigit():
            more.add(int(part))
            short = f"more.{int(part) - 1}.{rest}"
        elif short != "mask_hidden":
            short = f"head.{short}"
        named[short] = tensor
    return named, len(more)


def save_network(
    network: PEagleNetwork,
    folder: Path,
    *,
    aux_layers: Sequence[int],
    mask_token_id: int,
    card: Mapping[str, Any],
) -> None:
    """Write config.json, model.safetensors and card.json in the layout that `load_network` reads.

    aux_layers: the tapped blocks, numbered by their inputs.
    """
    tensors = {}
    for name, tensor in network.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "more":
            number, _, rest = rest.partition(".")
            rest = f"layers.{int(number) + 1}.{rest}"
        elif part == "head":
            rest = f"layers.0.{rest.removeprefix('layer.')}" if rest.startswith("layer.") else rest
        tensors[rest or name] = tensor.detach().cpu().contiguous()
    config = {
        **official_config(network.head, aux_layers),
        "num_hidden_layers": 1 + len(network.more),
        "mask_token_id": mask_token_id,
    }
    write_files(folder, with_vocabulary_maps(tensors, network.shape), config, card)
