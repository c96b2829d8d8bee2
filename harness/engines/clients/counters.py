"""Counters of speculation in the Prometheus metrics of servers."""

from __future__ import annotations

import re

from harness.engines.clients.streams import EngineCounts

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{[^}]*\})?\s+([-+0-9.eE]+|NaN|[-+]?Inf)(?:\s+\d+)?$")
_FAMILIES: tuple[tuple[str, str, str], ...] = (
    # vLLM: a draft is a verify step that had one.
    (
        "vllm:spec_decode_num_drafts_total",
        "vllm:spec_decode_num_draft_tokens_total",
        "vllm:spec_decode_num_accepted_tokens_total",
    ),
    ("specbench_draft_rounds_total", "specbench_drafted_tokens_total", "specbench_accepted_tokens_total"),
)
"""Names of the counters of rounds with a draft, drafted and accepted tokens, by server."""


def samples(text: str) -> dict[str, float]:
    """The sum of every metric over its labels, by name."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if match := _LINE.match(line.strip()):
            found[match[1]] = found.get(match[1], 0.0) + float(match[3])
    return found


def counts_between(before: str | None, after: str | None) -> EngineCounts | None:
    """What a server counted between two readings of its metrics; None where it does not count.

    A counter that appears only in the later reading began at 0.
    """
    if before is None or after is None:
        return None
    old, new = samples(before), samples(after)
    for names in _FAMILIES:
        if any(name in new for name in names):
            return EngineCounts(*(round(new.get(name, 0.0) - old.get(name, 0.0)) for name in names))
    return None
