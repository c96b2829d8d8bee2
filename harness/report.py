"""Report on stored runs: `python -m harness.report build` writes tables; `--help` lists all commands."""

from __future__ import annotations

import sys

from harness.cli.report_command import main

if __name__ == "__main__":
    sys.exit(main())
