#!/bin/bash
# Draft heads of several methods on equal terms: the same answers of the target, as many answer tokens seen, as many trials of the
# learning rate. Then all of them are measured on six tasks: python -m harness.bench experiment=equal_heads.
# scripts/heads.sh PROMPTS.jsonl TASKS [RESULTS [key=value of every training ...]]
# PROMPTS: see docs/heads.md. TASKS: a folder with TASK.jsonl (question_id, category, turns) of every task of experiment=equal_heads;
# dialogues that share 13 consecutive words with one of their prompts are not trained on.
# A run that was interrupted resumes when it is typed again. These variables change it; TARGET=tiny NUM=90 TOKENS=1500
# TRIAL=400 LENGTH=24 LAYERS=1 VOCABULARY=200 PART=answers,heads tries the script itself in minutes.
#   TARGET, NUM, LENGTH, BATCH: the target, how many prompts it answers, tokens of an answer, and answers at a time
#   DTYPE: of writing and training; bfloat16 where that is fast
#   METHODS: some of the heads; eagle2 and peagle can be trained, but are not in the table
#   TOKENS, TRIAL, RATES: answer tokens of a training, of a trial, and the rates that are tried (one rate needs no trial)
#   VOCABULARY, WIDTH, LAYERS, LEVELS, RANK, TAPS: draft vocabulary and sizes where a head has them, and the target's blocks whose
#     outputs block drafters read, as in [1,14,26]; with those of EAGLE-3 one set of features serves all
#   PART: answers,heads,table or some of them
set -e
prompts=${1:?a JSONL file of prompts, see docs/heads.md}
tasks=${2:?a folder with the JSONL files of the measured tasks}
results=${3:-results}
python=${PYTHON:-python}
target=${TARGET:-smollm2_135m}
default="eagle3 fasteagle specblock dflash dspark"
part=,${PART:-answers,heads,table},
answers=$results/answers.jsonl
measured=$(printf ",$tasks/%s.jsonl" mt_bench humaneval gsm8k alpaca cnn_dm natural_questions)

train() { # METHOD FOLDER RATE TOKENS DATA [key=value ...]
  method=$1 folder=$2 rate=$3 tokens=$4
  case $method in
    eagle2 | eagle3) own="methods.$method.recipe.row_share=0.25" ;;
    fasteagle) own="methods.fasteagle.num_levels=${LEVELS:-4} methods.fasteagle.intermediate_size=${WIDTH:-null} methods.fasteagle.recipe.row_share=0.5" ;;
    specblock) own="methods.specblock.intermediate_size=${WIDTH:-null} methods.specblock.recipe.row_share=0.5" ;;
    dflash | dspark) own="methods.$method.num_layers=${LAYERS:-5} methods.$method.intermediate_size=${WIDTH:-null}
      methods.$method.tap_layers=${TAPS:-null}" ;;
    *) own= ;;
  esac
  [ "$method" = dspark ] && own="$own methods.dspark.markov_rank=${RANK:-256}"
  # EAGLE-2's head shares the target's vocabulary.
  # shellcheck disable=SC2086
  "$python" -m harness.train target="$target" target.dtype="${DTYPE:-float32}" method="$method" out="$folder" results="$results" \
    tracker=none training.learning_rate="$rate" training.num_tokens="$tokens" training.num_steps=10000000 training.final_share=0 \
    draft_vocab_size="${VOCABULARY:-8192}" exclude_paths="[${measured:1}]" $own "${@:5}"
}

if [[ $part == *,answers,* ]]; then
  # Written as a data source of a training of one step, which also checks that everything fits.
  train eagle3 "$results/heads/check" 1e-3 1 data=answered data.task.path="$prompts" data.out="$answers" data.num="${NUM:-15000}" \
    data.batch_size="${BATCH:-64}" data.max_answer_tokens="${LENGTH:-256}" "${@:4}"
fi
if [[ $part == *,heads,* ]]; then
  for method in ${METHODS:-$default}; do
    best=
    read -ra rates <<<"${RATES:-5e-4 1e-3 2e-3}"
    for rate in "${rates[@]}"; do
      [ ${#rates[@]} = 1 ] && best="0 $rate" && break
      train "$method" "$results/heads/trial-$method-$rate" "$rate" "${TRIAL:-80000}" data=given data.path="$answers" "${@:4}" >"$results/trial.json"
      tau=$("$python" -c 'import json, sys; print(json.load(sys.stdin)["tau"])' <"$results/trial.json")
      echo "$method at $rate: held-out tau $tau"
      best=$(printf '%s\n' "$best" "$tau $rate" | LC_ALL=C sort -g | tail -1)
    done
    train "$method" "$results/heads/$target-$method" "${best#* }" "${TOKENS:-3000000}" data=given data.path="$answers" "${@:4}"
  done
fi
if [[ $part == *,table,* ]]; then
  methods=
  for method in ${METHODS:-$default}; do
    [[ " $default " == *" $method "* ]] && methods=$methods,$method
    [ "$method" = dflash ] && methods=$methods,ddtree # the trees of DFlash's head
  done
  "$python" -m harness.bench experiment=equal_heads target="$target" results="$results" tracker=none "method=[${methods:1}]" \
    "task.path=$tasks/\${task.name}.jsonl"
fi
