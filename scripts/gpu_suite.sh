#!/bin/sh
# Runs the tests and benchmarks of a CUDA device in about nine minutes: scripts/gpu_suite.sh FOLDER [BATCH ...]
# scripts/gpu_curve.sh measures the full curve.
# 8B shapes with random weights, acceptance forced to EAGLE-3's published 6.13 (MT-bench, LLaMA-3.1-8B, T = 0;
# arXiv 2503.01840, table 1), a 60-node tree over a draft vocabulary of 32 thousand, prompts of 128 random tokens.
# FOLDER receives runs, tables, the tests' output and the share of a round that is spent outside of kernels. TESTS=no and
# PROFILE=no leave parts out. TARGET=tiny DEPTH=3 PROFILE=no tries the script itself anywhere.
set -eu
out=$1
shift
python=${PYTHON:-python3}
mkdir -p "$out"
$python - "$out/prompts.jsonl" <<'PROMPTS'
import json, random, sys
from pathlib import Path

drawn = random.Random(0)
lines = [{"id": str(i), "input_ids": [drawn.randrange(1, 256) for _ in range(128)]} for i in range(128)]
Path(sys.argv[1]).write_text("".join(json.dumps(line) + "\n" for line in lines))
PROMPTS
arms="target=${TARGET:-llama_8b_shape} target.compile=true methods.eagle3.head=random
    +methods.eagle3.draft_vocab_size=${VOCABULARY:-32000} methods.eagle3.tree.depth=${DEPTH:-7}"
settings="method=eagle3 ladder=strong task=token_ids task.path=$out/prompts.jsonl accept=forced acceptor.tau=${TAU:-6.13}
    decoding=greedy measure=quick +measure.waves=2 max_new_tokens=${TOKENS:-128}"
for batch in ${*:-1 8 64}; do
    # As many prompts as fill two waves; six if they are decoded one by one.
    prompts=$((batch > 1 ? 2 * batch : ${PROMPTS:-6}))
    $python -m harness.bench ~experiment $arms $settings task.limit=$prompts measure.batch_size="$batch" tracker=none \
        results="$out" >"$out/batch-$batch.json"
    if [ "$batch" = 1 ] && [ "${PROFILE:-yes}" = yes ]; then
        $python -m harness.cost kernels $arms method=[vanilla,eagle3] costs.batches=[1] costs.contexts=[128] costs.tau="${TAU:-6.13}" \
            >"$out/profile.json"
    fi
done
$python -m harness.report build --results "$out" --out "$out/tables"
if [ "${TESTS:-yes}" = yes ]; then
    $python -m pytest -q -m gpu -p no:cacheprovider tests 2>&1 | tee "$out/tests.txt"
fi
