"""Fill a network with the tensors of a checkpoint, after checking them and its vocabulary map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from harness.config import ConfigError

MAPS = ("d2t", "t2d", "hot_token_id")
"""Tensors that say which of the target's tokens the draft ids are."""
Head = TypeVar("Head", bound=nn.Module)


def blank(make: Callable[[], Head], shape: Any, where: str) -> Head:
    """The network that `make` makes, without storage; `shape`: names its activation and rotary embedding.

    Raises:
        ConfigError: transformers has no such activation or embedding.
    """
    try:
        with torch.device("meta"):
            return make()
    except (KeyError, ValueError, TypeError) as error:  # activations and rotary embeddings go by name
        raise ConfigError(
            f"{where}: its config.json asks for what transformers does not have "
            f"(hidden_act={shape.hidden_act}, rope_scaling={shape.rope_scaling}): {error!r}"
        ) from error


def filled(head: Head, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> Head:
    """`head` with these tensors, ready to run. Only parameters take `dtype`."""
    # Copied, because a mapped file would have to stay unchanged as long as the head lives.
    state = {
        name: tensor.to(device, tensor.dtype if name == "d2t" else dtype, copy=True)
        for name, tensor in tensors.items()
    }
    head.load_state_dict(state, assign=True)
    # The frequencies are computed, not loaded, and stay float32 whatever the dtype of the weights.
    rotary: Any = head.rotary
    head.rotary = type(rotary)(rotary.config).to(device)
    head.eval().requires_grad_(False)
    return head


def refuse_differences(
    head: nn.Module, tensors: Mapping[str, Tensor], where: str, official: Callable[[str], str] = str
) -> None:
    """Raise unless `tensors` are exactly those that `head` has.

    official: the name of a tensor in official checkpoints, for messages.

    Raises:
        ConfigError: one is missing, unexpected or of another shape.
    """
    expected = {name: list(tensor.shape) for name, tensor in head.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    problems = []
    for name in sorted(expected.keys() | found.keys()):
        wanted, there = expected.get(name), found.get(name)
        shown = official(name)
        if there is None:
            problems.append(f"missing {shown} {wanted}")
        elif wanted is None:
            problems.append(f"unexpected {shown} {there}")
        elif wanted != there:
            problems.append(f"{shown} {there} in place of {wanted}")
    if problems:
        raise ConfigError(f"{where}: its tensors are not those of such a head: {'; '.join(problems)}.")


def vocabulary_map(maps: Mapping[str, Tensor], size: int, vocab_size: int, where: str) -> Tensor:
    """`d2t` [V] int64, checked: target ids rise with draft ids, and are the ones that `t2d` marks.

    size: V, of the draft vocabulary. vocab_size: of the target's.

    Raises:
        ConfigError: there is no map, or it is corrupted.
    """
    if size == vocab_size:
        return torch.zeros(size, dtype=torch.int64)  # as the official code, which then ignores a map
    for name, tensor in maps.items():
        wanted = [vocab_size if name == "t2d" else size]
        if list(tensor.shape) != wanted:
            raise ConfigError(f"{where}: {name} has shape {list(tensor.shape)} in place of {wanted}.")
    draft_ids = torch.arange(size)
    if "d2t" in maps:
        target_ids = draft_ids + maps["d2t"].long()
    elif "hot_token_id" in maps:
        target_ids = maps["hot_token_id"].long()
    else:
        raise ConfigError(
            f"{where}: missing d2t [{size}]; the target's vocabulary has {vocab_size} tokens, without d2t "
            "nothing tells which of them the draft ids are."
        )
    wrong = (target_ids < 0) | (target_ids >= vocab_size)
    wrong[1:] |= target_ids[1:] <= target_ids[:-1]
    if "t2d" in maps:
        marked = maps["t2d"].bool().nonzero()[:, 0]
        if len(marked) != size:
            raise ConfigError(
                f"{where}: the vocabulary map is corrupted: t2d marks {len(marked)} target ids, the draft "
                f"vocabulary has {size}."
            )
        wrong |= marked != target_ids
    if wrong.any():
        first = int(wrong.nonzero()[0])
        name = "d2t" if "d2t" in maps else "hot_token_id"
        raise ConfigError(
            f"{where}: the vocabulary map is corrupted: {name}[{first}] makes draft id {first} the target id "
            f"{int(target_ids[first])}; target ids must rise within 0..{vocab_size - 1}, as t2d marks them."
        )
    return target_ids - draft_ids
