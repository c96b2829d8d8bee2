"""Faults that end an arm, because what it decodes is no result."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch

from harness.config import ConfigError


class DecodingFault(ConfigError):
    """What an arm decodes is no result. The arm ends; if it is vanilla, so does the run."""

    kind: ClassVar[str]
    """The `Failure.kind` in the records."""


class LogitsNotFinite(DecodingFault):
    """The target's logits for a token of the output are NaN or infinite."""

    kind = "not-finite"

    def __init__(self, place: str) -> None:
        """place: where in the output, as in `after the prompt`."""
        super().__init__(
            f"the target's logits {place} are NaN or infinite, so its tokens mean nothing."
            " Its weights hold such numbers, or its dtype is too narrow for it: check the weights, or type"
            " target.dtype=float32"
        )


class IllegalDraft(DecodingFault):
    """A drafter proposed something that is no draft: tokens that do not exist, or no tree."""

    kind = "illegal-draft"


class MethodError(DecodingFault):
    """The code of a drafter or of a rung raised an exception."""

    kind = "error"

    def __init__(self, error: Exception) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        super().__init__(f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})")


@contextmanager
def method_code() -> Iterator[None]:
    """Mark the exceptions of a block as those of a method, except wrong settings and lack of memory.

    Raises:
        MethodError: anything else was raised.
    """
    try:
        yield
    except (ConfigError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise MethodError(error) from error
