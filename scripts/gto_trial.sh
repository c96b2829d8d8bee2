#!/bin/bash
# GTO against its control (the same rows, steps and evaluations without the term of the trees) on SmolLM2: three seeds, then
# the heads' tau on held-out prompts and the paired differences, a bootstrap over prompts.
# scripts/gto_trial.sh DIALOGUES.jsonl PROMPTS [RESULTS [key=value of the measurement ...]]
# PROMPTS: a folder with TASK.jsonl (question_id, category, turns) of every task of experiment=gto_trial. They are measured,
# and dialogues that share 13 consecutive words with one of their prompts are not trained on.
# An interrupted trial resumes when it is typed again. STEPS, RATE, TREE_GROUPS, REWARD and START change the trainings, as does
# TRAINING="key=value ..." with anything else.
set -e
dialogues=${1:?a JSONL file of dialogues, see docs/eagle.md}
prompts=${2:?a folder with mt_bench.jsonl, humaneval.jsonl, gsm8k.jsonl and alpaca.jsonl}
results=${3:-results}
measured="$prompts/mt_bench.jsonl,$prompts/humaneval.jsonl,$prompts/gsm8k.jsonl,$prompts/alpaca.jsonl"
steps=${STEPS:-300}
for seed in 0 1 2; do
  for arm in gto control; do
    weight=0.5
    [ $arm = control ] && weight=0
    # One evaluation, at the end: the head of the last step is kept, whatever its tau.
    # shellcheck disable=SC2086
    "${PYTHON:-python}" -m harness.train method=gto start="${START:-smollm2_135m-eagle3}" \
      data=given data.path="$dialogues" exclude_paths="[$measured]" tracker=none results="$results" out="$results/heads/$arm-$seed" \
      training.seed=$seed training.num_steps="$steps" training.rows_per_step=1 training.warmup_steps=20 \
      training.learning_rate="${RATE:-0.0001}" training.eval_every="$steps" training.save_every=50 \
      methods.gto.recipe.row_share=0.25 methods.gto.objective.weight=$weight \
      methods.gto.objective.num_groups="${TREE_GROUPS:-4}" methods.gto.objective.reward="${REWARD:-lse}" ${TRAINING:-}
  done
done
"${PYTHON:-python}" -m harness.bench experiment=gto_trial tracker=none results="$results" \
  task.path="$prompts/\${task.name}.jsonl" "${@:4}"
"${PYTHON:-python}" "$(dirname "$0")/tau_differences.py" "$results" '*' gto/control
