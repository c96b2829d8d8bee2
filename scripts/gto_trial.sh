#!/bin/bash
# GTO against its control (the same rows, steps and evaluations without the term of the trees) on SmolLM2: three seeds, then
# the heads' tau on held-out prompts and the paired differences, a bootstrap over prompts.
# scripts/gto_trial.sh DIALOGUES.jsonl [RESULTS [key=value of the measurement ...]]
# An interrupted trial resumes when it is typed again. STEPS, RATE, TREE_GROUPS, REWARD and START change the trainings.
set -e
dialogues=${1:?a JSONL file of dialogues, see docs/eagle.md}
results=${2:-results}
steps=${STEPS:-300}
for seed in 0 1 2; do
  for arm in gto control; do
    weight=0.5
    [ $arm = control ] && weight=0
    # One evaluation, at the end: the head of the last step is kept, whatever its tau.
    "${PYTHON:-python}" -m harness.train method=gto start="${START:-smollm2_135m-eagle3}" \
      data=given data.path="$dialogues" tracker=none results="$results" out="$results/heads/$arm-$seed" \
      training.seed=$seed training.num_steps="$steps" training.rows_per_step=1 training.warmup_steps=20 \
      training.learning_rate="${RATE:-0.0001}" training.eval_every="$steps" training.save_every=50 \
      methods.gto.recipe.row_share=0.25 methods.gto.objective.weight=$weight \
      methods.gto.objective.num_groups="${TREE_GROUPS:-4}" methods.gto.objective.reward="${REWARD:-lse}"
  done
done
"${PYTHON:-python}" -m harness.bench experiment=gto_trial tracker=none results="$results" "${@:3}"
"${PYTHON:-python}" "$(dirname "$0")/tau_differences.py" "$results" '*' gto/control
