"""Compare our EAGLE with recorded cases of the official code: python -m harness.conformance DIR

The last line on stdout is JSON, `{"found": n, "matched": n, "failed": [...]}`. Exit status: 0 all cases
match, 1 a case does not, or there is none, 2 DIR cannot be read.
"""

from __future__ import annotations

import sys

from harness.conformance.suite import main

if __name__ == "__main__":
    sys.exit(main())
