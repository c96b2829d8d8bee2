"""What the host reads of a round, with the checks of drafts and of logits that end an arm.

Nothing here waits for the device more often than the loop does anyway: what is checked travels to the host
with the decision of the round.

Shapes: B sequences that run, n drafted nodes, r riders, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.decoding.acceptance import Accepted
from harness.decoding.faults import IllegalDraft, LogitsNotFinite
from harness.drafting.draft import Draft

_EXPONENT, _MINUS_INFINITY = 0x7F800000, -0x00800000
"""Bits of a float32 as int32: those that NaN and both infinities have all set, and the whole of -inf."""


@dataclass(frozen=True)
class Decision:
    """An `Accepted` on the host, with the ids of the path. One entry a sequence."""

    length: list[int]
    token: list[int]
    path_tokens: list[list[int]]
    size: list[int]
    depth: list[int]
    illegal: bool = False
    """Whether a draft of the batch was illegal; see `Proposal`."""
    not_finite: int | None = None
    """The first row whose tokens were decided by NaN or infinity."""


def read(accepted: Accepted, draft: Draft, logits: Tensor, illegal: Tensor | None = None) -> Decision:
    """The one read of the round from the device to the host.

    logits [B, 1+n, V]: those that `accepted` was decided by. Where a row holds NaN or infinity, so does the
    token that was drawn from it, because the arg max is there; hence only the logits of tokens are read.
    illegal [B] bool: those of the `Proposal`, if it has any.
    """
    columns = [accepted.length, accepted.token, draft.size]
    if draft.width:
        columns.append(torch.zeros_like(draft.size) if illegal is None else illegal)
        # A chain's deepest level is its size.
        columns.append(draft.size if draft.is_chain else (draft.depths * draft.real).amax(-1))
        kept = draft.tokens.gather(1, accepted.path)
        token, end = accepted.token[:, None], accepted.length[:, None]
        chosen = torch.cat([kept, token], dim=1).scatter_(1, end, token)
        places = pad(accepted.path + 1, (1, 0))
        order = torch.arange(len(places), device=places.device)[:, None]
        rest = [kept, _bits(logits[order, places, chosen])]
    else:
        columns += [draft.size if illegal is None else illegal, draft.size]
        rest = [_bits(logits[:, 0].gather(1, accepted.token[:, None]))]
    rows = torch.cat([*(column[:, None] for column in columns), *rest], dim=1).tolist()
    faults = (number for number, row in enumerate(rows) if _is_fault(row[5 + draft.width :], row[0]))
    return Decision(
        length=[row[0] for row in rows],
        token=[row[1] for row in rows],
        size=[row[2] for row in rows],
        depth=[row[4] for row in rows],
        path_tokens=[row[5 : 5 + row[0]] for row in rows],
        illegal=any(row[3] or not 0 <= row[2] <= draft.width for row in rows),
        not_finite=next(faults, None),
    )


def read_first(tokens: Tensor, logits: Tensor) -> list[int]:
    """The first tokens [m] of outputs on the host, from the logits [m, V] after their prompts.

    Raises:
        LogitsNotFinite: one was drawn from a row that holds NaN or infinity.
    """
    rows = torch.cat([tokens[:, None], _bits(logits.gather(1, tokens[:, None]))], dim=1).tolist()
    if any(_is_fault(row[1:], 0) for row in rows):
        raise LogitsNotFinite("after the prompt")
    return [row[0] for row in rows]


def _bits(logits: Tensor) -> Tensor:
    """Logits as the bits of float32 numbers: integers, which travel beside token ids."""
    return logits.float().view(torch.int32).long()


def _is_fault(bits: Sequence[int], length: int) -> bool:
    """Whether the logits of `length` kept tokens and of the one after them hold NaN or infinity.

    A kept token may have -inf, as a model masks tokens and an acceptor may keep them unseen; a token that was
    drawn has it only where no token has more.
    """
    kept = any(one & _EXPONENT == _EXPONENT and one != _MINUS_INFINITY for one in bits[:length])
    return kept or bits[length] & _EXPONENT == _EXPONENT


class Proposal(NamedTuple):
    """A draft as it was proposed, and as it can be fed to the target whatever it holds."""

    given: Draft
    draft: Draft
    """Tokens outside the vocabulary and parents that do not come before their children are replaced, because
    on a GPU they would end the process."""
    illegal: Tensor | None = None
    """[B] bool: where anything was replaced, for `read`; None where nothing is drafted."""


def checked(draft: Any, num_rows: int, vocab_size: int) -> Proposal:
    """Check a proposed draft as far as it goes without waiting for the device.

    Raises:
        IllegalDraft: no draft at all, or its tensors have other shapes or types than `Draft` says.
    """
    if not isinstance(draft, Draft):
        raise IllegalDraft(f"proposed {type(draft).__name__} instead of a Draft")
    shape = (num_rows, draft.width)
    wanted = {"tokens": shape, "parents": shape, "size": (num_rows,)}
    for name, size in wanted.items():
        given = getattr(draft, name)
        if given.dtype != torch.int64 or given.shape != size:
            raise IllegalDraft(
                f"proposed {name} of {given.dtype} {list(given.shape)}; needs torch.int64 {list(size)}"
            )
    if not draft.width and not draft.riders:
        return Proposal(draft, draft)
    tokens = draft.tokens.clamp(0, vocab_size - 1)
    illegal = tokens != draft.tokens
    parents = draft.parents
    if not draft.is_chain:
        before = torch.arange(-1, draft.width - 1, device=parents.device)
        parents = torch.minimum(parents.clamp(min=-1), before)
        illegal = illegal | (parents != draft.parents)
    riders, faulty = draft.riders, illegal.any(-1)
    if riders:
        safe = riders.tokens.clamp(0, vocab_size - 1)
        faulty = faulty | (safe != riders.tokens).any(-1)
        riders = replace(riders, tokens=safe)
    return Proposal(draft, replace(draft, tokens=tokens, parents=parents, riders=riders), faulty)


def refusal(draft: Draft, vocab_size: int) -> IllegalDraft:
    """The error that names what is illegal in a draft as it was proposed."""
    places = torch.arange(draft.width)
    for tokens, parents in zip(draft.tokens.cpu(), draft.parents.cpu(), strict=True):
        for token in tokens[(tokens < 0) | (tokens >= vocab_size)].tolist():
            return IllegalDraft(f"proposed the token {token}; the vocabulary is 0..{vocab_size - 1}")
        wrong = (parents < -1) | (parents >= places)
        for node, parent in zip(places[wrong].tolist(), parents[wrong].tolist(), strict=True):
            return IllegalDraft(
                f"proposed a tree whose node {node} has the parent {parent}; parents are -1, or come before"
            )
    if not bool(((draft.size >= 0) & (draft.size <= draft.width)).all()):
        return IllegalDraft(f"proposed drafts of the sizes {draft.size.tolist()} in {draft.width} columns")
    return IllegalDraft(f"proposed a rider outside the vocabulary, which is 0..{vocab_size - 1}")
