"""Compare our methods with recorded cases of official code: python -m harness.conformance DIR

The last line on stdout is JSON, `{"found": n, "matched": n, "failed": [...]}`, with `"unknown": {family: n}`
if DIR holds cases of families that are not known here. Exit status: 0 all cases match, 1 a case does not
match, its family is not known, or there is no case, 2 DIR cannot be read.
"""

from __future__ import annotations

import sys

from harness.conformance.suite import main

if __name__ == "__main__":
    sys.exit(main())
