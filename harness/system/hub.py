"""Errors of the Hugging Face hub as messages that say what to type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import errors

from harness.config import ConfigError

TIMEOUT_S = 10.0
"""Seconds to wait for an answer of the hub."""


class Unreachable(Exception):
    """The hub does not answer, and the text says why. The caller may fall back to an earlier download."""


@contextmanager
def asking(where: str, revision: str, otherwise: str) -> Iterator[None]:
    """Translate errors of the hub within the block, which asks it for a repository.

    where: opening of each message, the option as typed. revision: opening of messages about the revision.
    otherwise: a sentence that says how to do without the hub.

    Raises:
        ConfigError: there is no such repository or revision, it is gated, or a file is missing in it.
        Unreachable: the hub does not answer.
    """
    try:
        yield
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"{where}: gated on the hub. Accept its licence there and type `hf auth login`. {otherwise}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{revision}: there is no such revision on the hub.") from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(
            f"{where}: neither a folder nor a public model on the hub (for a private one, type"
            f" `hf auth login`). {otherwise}"
        ) from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{where}: neither a folder nor a hub id ORG/NAME: {first_line(error)}") from error
    except errors.RemoteEntryNotFoundError as error:
        raise ConfigError(f"{where}: a file is missing on the hub: {first_line(error)}") from error
    except Exception as error:  # classes of the HTTP library, which differ between versions of the hub client
        raise Unreachable(first_line(error)) from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, after the name of its class."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
