"""The lines of a journal: their bytes, their checksums, and the chain that ties each to all before it.

A line is `{"crc":"<crc32 of what follows the comma>","run":...,"chain":"<link>","kind":...,"data":...}`. Its
link is a SHA-256 over the link of the line before it, the run, and what follows. The link before the first
line is that of the manifest. A line that was changed, moved, left out, or taken from another run therefore
does not fit. Runs from before there were chains have neither `run` nor `chain`.

The chain has no key: it finds accidents and edits by hand, not somebody who computes all links again.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from harness.system.naming import digest

_LINK_LENGTH = 16
_LINE = re.compile(
    rb'\{"crc":"(?P<crc>[0-9a-f]{8})",'
    rb'(?P<checked>(?:"run":(?P<run>"(?:[^"\\]|\\.)*"),"chain":"(?P<link>[0-9a-f]{16})",)?'
    rb'(?P<rest>"kind":"(?P<kind>[a-z_]+)","data":(?P<data>.*)\}))\n',
    re.DOTALL,
)
_HEAD = re.compile(rb'\{"crc":"([0-9a-f]{8})",')
_NOT_LINKED = ("chain", "schema_version")
"""What a manifest has besides the facts that its link is made of; migration changes the version alone."""


class TornLine(ValueError):
    """A line is incomplete or does not match its checksum."""


class Line(NamedTuple):
    """A line that was read."""

    kind: str
    data: bytes
    """JSON."""


def manifest_link(manifest: Mapping[str, Any]) -> str:
    """The link of a manifest as JSON types."""
    facts = {key: value for key, value in manifest.items() if key not in _NOT_LINKED}
    return digest(json.loads(json.dumps(facts)))[:_LINK_LENGTH]


@dataclass
class Chain:
    """Where the next line of a journal belongs."""

    run: str
    link: str
    """The link of the last line, or of the manifest; "" in a run without a chain."""

    def encode(self, kind: str, data: Any) -> tuple[bytes, str]:
        """The bytes of the next line with its newline, and its link."""
        rest = b'"kind":"%s","data":%s}' % (kind.encode(), _json(data))
        if not self.link:
            return _with_checksum(rest), ""
        link = self._after(rest)
        return _with_checksum(b'"run":%s,"chain":"%s",%s' % (self._name(), link.encode(), rest)), link

    def take(self, line: bytes) -> Line:
        """Read the next line.

        Raises:
            TornLine: it is incomplete or does not match its checksum.
            ValueError: it is whole, but does not belong here.
        """
        found = _match(line)
        if not self.link:
            if found["link"]:
                raise ValueError("it has a link, and the manifest has none")
        else:
            if not found["link"]:
                raise ValueError("it has no link to the line before it")
            if found["run"] != self._name():
                raise ValueError(f"it belongs to the run {found['run'].decode('utf-8', 'replace')}")
            self.link = self._after(found["rest"])
            if found["link"] != self.link.encode():
                raise ValueError("it does not follow from the line before it")
        return Line(found["kind"].decode(), found["data"])

    def is_of(self, line: bytes) -> Line | None:
        """A line anywhere in the journal, checked by itself; None if it is torn or of another run."""
        try:
            found = _match(line)
        except ValueError:
            return None
        is_ours = found["run"] == self._name() if self.link else not found["link"]
        return Line(found["kind"].decode(), found["data"]) if is_ours else None

    def _name(self) -> bytes:
        return json.dumps(self.run).encode()

    def _after(self, rest: bytes) -> str:
        return hashlib.sha256(self.link.encode() + self._name() + rest).hexdigest()[:_LINK_LENGTH]


def _match(line: bytes) -> re.Match[bytes]:
    if not line.endswith(b"\n"):
        raise TornLine("it has no end")
    head = _HEAD.match(line)
    if not head or int(head[1], 16) != zlib.crc32(memoryview(line)[head.end() : -1]):
        raise TornLine("its checksum does not match")
    found = _LINE.fullmatch(line)
    if not found:
        raise ValueError("it is no line of a journal")
    return found


def _with_checksum(checked: bytes) -> bytes:
    return b'{"crc":"%08x",%s\n' % (zlib.crc32(checked), checked)


def _json(data: Any) -> bytes:
    """JSON in ASCII. Half of a surrogate pair, which no strict reader accepts, becomes a question mark."""
    text = json.dumps(data, separators=(",", ":"))
    if "\\ud" in text:
        whole = json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
        text = json.dumps(json.loads(whole), separators=(",", ":"))
    return text.encode()
