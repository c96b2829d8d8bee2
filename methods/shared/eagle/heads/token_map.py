"""Drafting from the frequent tokens alone, with a head that uses the target's LM head.

FR-Spec (Zhao et al. 2025, arXiv 2502.14856): a small head spends most of a step on the LM head over the whole
vocabulary, and most tokens of a text are among a few thousand. The head keeps its weights, guesses among
these tokens alone, and the target's verification is what it was.

Shapes: N tokens, V the target's vocabulary, H hidden size.
"""

from __future__ import annotations

import hashlib
import pickle
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.config import ConfigError
from harness.drafting.drafter import TargetView
from methods.shared.draft_vocabulary import linear_of, lm_head_rows
from methods.shared.eagle.heads.base import DraftHead
from methods.shared.head_files import SHIPPED


@dataclass(frozen=True)
class TokenMap:
    """The tokens that a head drafts."""

    path: str | None
    """As it was given."""
    ids: Tensor | None
    """[N] int64, in rising order; None: all that the head can draft."""

    @classmethod
    def read(cls, path: str | None, head: str | None, vocab_size: int) -> TokenMap:
        """Read a file; None gives the map of all tokens.

        path: a file in the folder `head`, or anywhere. It holds a list or a tensor of ids in any order, as
        FR-Spec's `freq_32768.pt` does, which SGLang reads as `--speculative-token-map`.

        Raises:
            ConfigError: there is no such file, or it does not hold different tokens of the target.
        """
        if path is None:
            return cls(None, None)
        where = f"token_map={path}"
        beside = [folder / path for folder in (SHIPPED / str(head), Path(str(head)).expanduser())]
        file = next((one for one in beside if one.is_file()), Path(path).expanduser())
        try:
            found = torch.load(file, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ConfigError(
                f"{where}: cannot be read as a list or tensor of torch.save ({error})"
            ) from error
        try:
            ids = torch.as_tensor(found).to(torch.int64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{where}: holds no list of token ids ({error})") from error
        if ids.dim() != 1 or not len(ids):
            raise ConfigError(
                f"{where}: holds no list of token ids, but something of shape {list(ids.shape)}"
            )
        ids = ids.sort().values
        if int(ids[0]) < 0 or int(ids[-1]) >= vocab_size:
            raise ConfigError(f"{where}: token ids must be from 0 to {vocab_size - 1}, of this target")
        if bool((ids[1:] == ids[:-1]).any()):
            raise ConfigError(f"{where}: names a token twice")
        return cls(path, ids)

    @torch.no_grad()
    def narrow(self, head: DraftHead, target: TargetView) -> DraftHead:
        """A copy of the head that drafts these tokens alone, with a copy of the target's rows [N, H].

        Where all are drafted, it is the head itself.

        Raises:
            ConfigError: the head has a draft vocabulary or an LM head of its own.
        """
        if self.ids is None:
            return head
        if head.has_vocabulary_map:
            raise ConfigError(
                f"token_map: an {head.title} head has an LM head of its own;"
                " python scripts/shrink_head.py vocabulary gives it fewer draft tokens"
            )
        copy = deepcopy(head)
        copy.shape = replace(head.shape, draft_vocab_size=len(self.ids))
        ids = self.ids.to(target.device)
        copy.lm_head = linear_of(*lm_head_rows(target, ids)).to(head.fc.weight.dtype)
        copy.register_buffer("d2t", ids - torch.arange(len(ids), device=ids.device))
        return copy

    def card(self) -> dict[str, Any]:
        """What a head's card says of it; nothing where all tokens are drafted."""
        if self.ids is None:
            return {}
        sha256 = hashlib.sha256(self.ids.numpy().tobytes()).hexdigest()[:16]
        return {"token_map": {"path": self.path, "num_tokens": len(self.ids), "sha256": sha256}}
