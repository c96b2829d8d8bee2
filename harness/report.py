"""Report: `python -m harness.report build` makes tables and figures of stored runs; `replay` asks what if."""

from __future__ import annotations

import sys

from harness.reporting import main

if __name__ == "__main__":
    sys.exit(main())
