"""The Hugging Face hub: what it refuses, in words that say what to type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import errors

from harness.config import ConfigError

TIMEOUT_S = 10.0


class Unreachable(Exception):
    """The hub does not answer; the text says why. An earlier download may do."""


@contextmanager
def asking(where: str, revision: str, otherwise: str) -> Iterator[None]:
    """Within it the hub is asked for a repository.

    where: begins each message, with what was typed; revision: the same for its revision. otherwise: how to do
    without the hub, a sentence.

    Raises:
        ConfigError: there is no such repository or revision, it is gated, or it is not what is wanted.
        Unreachable: see there.
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
    except Exception as error:  # the http library's own classes, which differ between hub versions
        raise Unreachable(first_line(error)) from error


def first_line(error: Exception) -> str:
    """Of its text, after its class."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
