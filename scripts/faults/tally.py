"""Counts of what each part tried and found."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """What one part found."""

    part: str
    tried: int = 0
    survived: int = 0
    lost: int = 0
    doubled: int = 0
    tracebacks: int = 0
    hangs: int = 0
    unnoticed: int = 0
    how: Counter[str] = field(default_factory=Counter)
    """How often each kind of fault was tried, or each answer given."""
    notes: list[str] = field(default_factory=list)

    def fault(self, kind: str, note: str) -> None:
        """Count a fault and keep how it came about."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.notes.append(f"{kind}: {note}")

    @property
    def num_faults(self) -> int:
        """Whatever was lost, doubled, unreadable or believed wrongly."""
        return self.lost + self.doubled + self.tracebacks + self.hangs + self.unnoticed

    def show(self) -> None:
        """Print it as one JSON line; notes go to stderr."""
        print(json.dumps({k: v for k, v in vars(self).items() if k != "notes"}), flush=True)
        for note in self.notes:
            print(note, file=sys.stderr, flush=True)
