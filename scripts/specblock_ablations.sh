#!/bin/bash
# SpecBlock and SpecBlock without one of its parts, trained alike: without the shift between layers, without the broadcast of the
# known position, with a loss in every slot instead of those whose prefix is right. Then acceptance lengths, and those of the
# complete head without branching by rank, with paired differences, a bootstrap over prompts.
# scripts/specblock_ablations.sh DIALOGUES.jsonl PROMPTS [RESULTS [key=value of every training ...]]
# RESULTS: a folder of its own, because all of its runs are compared.
# PROMPTS: a folder with TASK.jsonl (question_id, category, turns) of every task of experiment=specblock_ablations; dialogues
# that share 13 consecutive words with one of their prompts are not trained on.
# Interrupted, it resumes when it is typed again. TARGET, TOKENS, RATE and VOCABULARY change the trainings; LIMIT, LENGTH and
# BUDGET (prompts of a task, tokens of an answer, drafted nodes) the measurement. TARGET=tiny TOKENS=1500 VOCABULARY=200 LIMIT=2
# LENGTH=12 BUDGET=8 tries the script itself in minutes.
set -e
dialogues=${1:?a JSONL file of dialogues, see docs/heads.md}
prompts=${2:?a folder with mt_bench.jsonl, humaneval.jsonl, gsm8k.jsonl and alpaca.jsonl}
results=${3:-results}
target=${TARGET:-smollm2_135m}
measured="$prompts/mt_bench.jsonl,$prompts/humaneval.jsonl,$prompts/gsm8k.jsonl,$prompts/alpaca.jsonl"
for arm in full no_shift no_broadcast every_slot; do
  case $arm in
    full) part= ;;
    no_shift) part=methods.specblock.shift=false ;;
    no_broadcast) part=methods.specblock.broadcast=false ;;
    every_slot) part=methods.specblock.recipe.valid_prefix=false ;;
  esac
  # shellcheck disable=SC2086
  "${PYTHON:-python}" -m harness.train target="$target" method=specblock data=given data.path="$dialogues" exclude_paths="[$measured]" \
    tracker=none results="$results" out="$results/heads/specblock-$arm" training.learning_rate="${RATE:-0.001}" \
    training.num_tokens="${TOKENS:-1000000}" training.num_steps=10000000 training.final_share=0 \
    draft_vocab_size="${VOCABULARY:-8192}" methods.specblock.recipe.row_share=0.5 $part "${@:4}"
done
"${PYTHON:-python}" -m harness.bench experiment=specblock_ablations target="$target" tracker=none results="$results" \
  task.limit="${LIMIT:-20}" max_new_tokens="${LENGTH:-96}" budget="${BUDGET:-60}" "task.path=$prompts/\${task.name}.jsonl"
"${PYTHON:-python}" "$(dirname "$0")/tau_differences.py" "$results" '*'
