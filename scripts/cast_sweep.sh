#!/bin/bash
# CAST against fixed trees, its ablations, and prompt lookup with and without the policy: SmolLM2 at batch 1, 4 and 8,
# T = 0 and 1, about 20 minutes on two cores. scripts/cast_sweep.sh [RESULTS] [key=value ...]
set -e
results=${1:-results}
for batch in 1 4 8; do
  # At batch 1 half of the prompts take as long as all of them in batches.
  limit=$((batch == 1 ? 8 : 16))
  "${PYTHON:-python}" -m harness.bench experiment=cast_sweep measure.batch_size=$batch task.limit=$limit \
    tracker=none results="$results" "${@:2}"
done
"${PYTHON:-python}" -m harness.report build --results "$results"
