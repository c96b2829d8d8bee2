"""Report: `python -m harness.report build` makes tables of stored runs; `--help` lists the rest."""

from __future__ import annotations

import sys

from harness.cli.report_command import main

if __name__ == "__main__":
    sys.exit(main())
