#!/bin/sh
# Tests and benchmarks of a CUDA device, in under nine minutes: scripts/gpu_suite.sh FOLDER [BATCH ...]
# The full curve is scripts/gpu_curve.sh.
# 8B shapes with random weights, acceptance forced to EAGLE-3's published 6.13 (MT-bench, LLaMA-3.1-8B, T = 0;
# arXiv 2503.01840, table 1), a 60-node tree over a draft vocabulary of 32 thousand. Runs, tables and what the tests said
# are in FOLDER. TARGET=tiny DEPTH=3 tries the script itself anywhere.
set -eu
out=$1
shift
target=${TARGET:-llama_8b_shape}
python=${PYTHON:-python3}
mkdir -p "$out"
$python -m pytest -q -m gpu -p no:cacheprovider tests 2>&1 | tee "$out/tests.txt"
for batch in ${*:-1 8 64}; do
    $python -m harness.bench ~experiment target="$target" target.compile=true ladder=strong \
        task=smoke method=eagle3 methods.eagle3.head=random +methods.eagle3.draft_vocab_size="${VOCABULARY:-32000}" \
        methods.eagle3.tree.depth="${DEPTH:-7}" accept=forced acceptor.tau="${TAU:-6.13}" decoding=greedy \
        measure=quick measure.batch_size="$batch" max_new_tokens="${TOKENS:-128}" tracker=none \
        results="$out" >"$out/batch-$batch.json"
done
$python -m harness.report build --results "$out" --out "$out/tables"
