"""Report: `python -m harness.report build` writes tables and figures from the stored runs."""

from __future__ import annotations

import sys

from harness.reporting import main

if __name__ == "__main__":
    sys.exit(main())
