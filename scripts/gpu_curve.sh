#!/bin/sh
# Measures the whole batch curve of a CUDA device with scripts/gpu_suite.sh, and its cost table: scripts/gpu_curve.sh FOLDER
# There is no time limit: every batch size compiles its own programs. Finished runs are not measured again.
set -eu
out=$1
python=${PYTHON:-python3}
"$(dirname "$0")/gpu_suite.sh" "$out" 1 2 4 8 16 32 64
$python -m harness.cost target="${TARGET:-llama_8b_shape}" target.compile=true method=eagle3 methods.eagle3.head=random \
    +methods.eagle3.draft_vocab_size="${VOCABULARY:-32000}" methods.eagle3.tree.depth="${DEPTH:-7}" \
    costs.batches=[1,8,64] results="$out"
$python -m harness.report build --results "$out" --out "$out/tables" --format md csv html
