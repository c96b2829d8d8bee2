"""Which prompts share many words: evaluation prompts must not be among those that a head was trained on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.config import ConfigError

NUM_WORDS = 13
"""Consecutive words that no training prompt may share with an evaluation prompt (GPT-3: arXiv 2005.14165)."""
_BYTES = 5
"""Length of a hash: of another text's, one in a million is found among a million of them."""
_WORD = re.compile(r"\w+")


class Fingerprints:
    """Hashes of all runs of 13 words in some texts, without regard to case and punctuation."""

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        """hashes: sorted, each once."""
        self._hashes = hashes

    @classmethod
    def of(cls, texts: Iterable[str]) -> Fingerprints:
        """The fingerprints of texts."""
        return cls(np.unique(_hashes(texts)))

    def __or__(self, other: Fingerprints) -> Fingerprints:
        """The fingerprints of the texts of both."""
        return Fingerprints(np.union1d(self._hashes, other._hashes))

    def share(self, texts: Iterable[str]) -> bool:
        """Whether one of the texts has 13 consecutive words that are among the fingerprinted ones."""
        asked = _hashes(texts)
        return bool(np.isin(asked, self._hashes).any())

    def save(self, file: Path) -> None:
        """Write the file that lies beside a head, an `.npy`."""
        bytes_of = self._hashes.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :_BYTES]
        np.save(file, bytes_of)

    @classmethod
    def load(cls, file: Path) -> Fingerprints:
        """Read the file beside a head.

        Raises:
            ConfigError: it is not such a file.
        """
        try:
            stored = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ConfigError(f"{file}: cannot be read as fingerprints of prompts ({error})") from error
        if stored.dtype != np.uint8 or stored.ndim != 2 or stored.shape[1] != _BYTES:
            raise ConfigError(
                f"{file}: holds {stored.dtype} {list(stored.shape)}, and fingerprints are uint8"
                f" [n, {_BYTES}]; train the head again, or delete the file to measure without the check"
            )
        whole = np.zeros((len(stored), 8), dtype=np.uint8)
        whole[:, :_BYTES] = stored
        return cls(whole.view("<u8")[:, 0].astype(np.uint64))


def _hashes(texts: Iterable[str]) -> NDArray[np.uint64]:
    found = {gram for text in texts for gram in grams(text)}
    hashes = (hashlib.blake2b(" ".join(gram).encode(), digest_size=_BYTES).digest() for gram in found)
    return np.fromiter((int.from_bytes(one, "little") for one in hashes), dtype=np.uint64, count=len(found))


def grams(text: str) -> Iterator[tuple[str, ...]]:
    """All runs of 13 words of a text, in lower case."""
    words = _WORD.findall(text.lower())
    return (tuple(words[i : i + NUM_WORDS]) for i in range(len(words) - NUM_WORDS + 1))
