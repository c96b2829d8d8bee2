"""The number that an answer in words ends with, as GSM8K is scored."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_MARKED = re.compile(r"(?:####|\\boxed\{)\s*(" + _NUMBER.pattern + ")")


def final_number(text: str) -> Decimal | None:
    """The last number behind `####` or in a `\\boxed{}`, else the last of all; None where there is none."""
    found = _MARKED.findall(text) or _NUMBER.findall(text)
    return Decimal(re.sub("[$,]", "", found[-1])) if found else None
