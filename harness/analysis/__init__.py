"""From records to numbers: metrics, intervals, ties, rows, and which runs compare."""
