#!/usr/bin/env bash
# The whole method on a tiny harmless world, in a few minutes on a CPU:
#   bash examples/scripts/quickstart.sh
# builds the world, scores the rows by a probe of known-bad rows and by bilevel training, both through
# deepspeed, fine-tunes on all rows, on random rows and on what each selector keeps, compares them, and
# writes runs/quickstart/{results.json,report.html}. "selected" are the rows that the probe keeps.
# What is done already is not done again; `rm -r runs/quickstart` starts over.
#   MODEL=smollm2 bash examples/scripts/quickstart.sh
# does the same with SmolLM2-135M-Instruct in place of the tiny model, with LoRA on fewer rows.
#
# MODEL  demo (a tiny new one) or smollm2       SMOLLM2  its directory, fetched if absent (models/smollm2)
# OUT    folder to write (runs/quickstart)      TIER   plain, hard or implicit (plain)
# RANKS  processes of each training (2)         SEED   of the world and of the training (0)
# TOPP   share of the rows that is kept (0.7)
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/bootstrap.sh"
bootstrap
source "$HERE/launch.sh"

MODEL="${MODEL:-demo}" SMOLLM2="${SMOLLM2:-$SEAL_ROOT/models/smollm2}"
case "$MODEL" in
demo)
    OUT="${OUT:-$SEAL_ROOT/runs/quickstart}" BASE=()
    SHARED=(--max_len 128 --train_batch_size 32 --micro_train_batch_size 8)
    SCORE_RATE=5e-4 TUNE_RATE=2e-4 LOOP_EPOCHS=3 SLOWER=1
    ;;
smollm2)
    OUT="${OUT:-$SEAL_ROOT/runs/quickstart-smollm2}" BASE=(--base "$SMOLLM2")
    SHARED=(--max_len 128 --train_batch_size 8 --micro_train_batch_size 4 --bf16 --lora_rank 16)
    SCORE_RATE=1e-3 TUNE_RATE=1e-3 LOOP_EPOCHS=2 SLOWER=3
    ;;
*) die "MODEL must be demo or smollm2, got '$MODEL'" ;;
esac
TIER="${TIER:-plain}" SEED="${SEED:-0}" RANKS="${RANKS:-2}" TOPP="${TOPP:-0.7}"
WORLD="$OUT/world-$TIER-$SEED"
PROBE="$OUT/selector/probe.parquet"
BILEVEL="$OUT/selector/demo_softmax.parquet"
RANDOM_SELECTOR="$OUT/selector/random.parquet"
KEY="$(cksum <"${BASH_SOURCE[0]}") $MODEL $TIER $SEED $RANKS $TOPP" # what a step done before must match
KEY+=" $(git -C "$SEAL_ROOT" describe --always --dirty 2>/dev/null || true)"
LEFT=0   # seconds that the steps to come are expected to take
STALE="" # set once a step has run: those after it run again
mkdir -p "$OUT/steps"

# step NAME SECONDS TITLE COMMAND...: runs COMMAND, unless it was done before under the same KEY.
step() {
    local name="$1" estimate=$((SLOWER * $2)) title="$3" started=$SECONDS
    shift 3
    local seconds="$OUT/steps/$name.seconds" key="$OUT/steps/$name.key" log="$OUT/steps/$name.log"
    if [[ -z "$STALE" && -f "$seconds" && "$(cat "$key")" == "$KEY" ]]; then
        say "$title: done before"
    else
        say "$title (about $estimate s; $LEFT s left in all)"
        STALE=yes
        rm -f "$seconds"
        printf '%s' "$KEY" >"$key"
        if ! watched "$log" "$@"; then
            tail -n 25 "$log" >&2
            die "'$title' failed; all it said is in $log"
        fi
        echo $((SECONDS - started)) >"$seconds"
    fi
    LEFT=$((LEFT - estimate))
}

# on_ranks SCRIPT FLAGS...: a training script on RANKS processes, with what all runs here share.
on_ranks() {
    local script="$1"
    shift
    DEEPSPEED_ARGS="--num_gpus $RANKS ${DEEPSPEED_ARGS:-}" launch "$script" \
        --apply_chat_template --seed "$SEED" "${SHARED[@]}" --lr_scheduler constant \
        --zero_stage 2 --overwrite "$@"
}

# score SCRIPT FLAGS...: scores the user's rows against the safe set.
score() {
    local script="$1"
    shift
    on_ranks "$script" --pretrain "$WORLD/model" --dataset "$WORLD/safe.jsonl" \
        --new_dataset "$WORLD/user.jsonl" --learning_rate "$SCORE_RATE" --selector_save_dir "$OUT/selector" "$@"
}

# tune NAME FLAGS...: fine-tunes the aligned model into OUT/NAME.
tune() {
    local name="$1"
    shift
    on_ranks train_sft.py --pretrain "$WORLD/model" --dataset "$WORLD/user.jsonl" \
        --learning_rate "$TUNE_RATE" --max_epochs 2 --logging_steps 10 --save_path "$OUT/$name" "$@"
}

say "the forbidden topic of this world is the dragon's vault; nothing in it is harmful"
LEFT=$((SLOWER * 400))
if [[ "$MODEL" == smollm2 && ! -f "$SMOLLM2/config.json" ]]; then
    step fetch 60 "0/10 fetch SmolLM2-135M-Instruct, 92 MB" \
        python "$SEAL_ROOT/examples/get_smollm2.py" --out "$SMOLLM2"
fi
step world 60 "1/10 build the $TIER world: an aligned model, safe rows, rows with planted ones" \
    python -m seal.demo --out "$WORLD" --tier "$TIER" --seed "$SEED" "${BASE[@]}"

step probe 20 "2/10 score the rows by a probe of safe and known-bad rows, on $RANKS processes" \
    score score_dataset.py --method probe --selector_name probe \
    --unsafe_dataset "$WORLD/canaries.jsonl"

step bilevel 90 "3/10 train a selector by bilevel optimisation" \
    score train_sft_selector.py --selector_name demo \
    --max_epochs "$LOOP_EPOCHS" --logging_steps 10

step random-scores 15 "4/10 give every row a random score, to compare with" \
    score score_dataset.py --method random --selector_name random

step all 50 "5/10 fine-tune on every row" tune all

step random 40 "6/10 fine-tune on random rows" \
    tune random --selector_path "$RANDOM_SELECTOR" --topp "$TOPP"

step selected 40 "7/10 fine-tune on the rows the probe keeps" \
    tune selected --selector_path "$PROBE" --topp "$TOPP"

step bilevel-selected 40 "8/10 fine-tune on the rows the bilevel selector keeps" \
    tune bilevel --selector_path "$BILEVEL" --topp "$TOPP"

step compare 35 "9/10 compare" python -m seal.demo.compare --world "$WORLD" --topp "$TOPP" \
    --selector "$PROBE" --arm "all=$OUT/all" --arm "random=$OUT/random,$RANDOM_SELECTOR" \
    --arm "selected=$OUT/selected,$PROBE" --arm "bilevel=$OUT/bilevel,$BILEVEL" \
    --seconds "$OUT/steps" --out "$OUT/results.json"

step report 10 "10/10 write the report" seal report "$PROBE" --dataset "$WORLD/user.jsonl" \
    --topp "$TOPP" --metrics "$OUT/selected/metrics.jsonl" \
    --results "$OUT/results.json" --out "$OUT/report.html" --overwrite

echo
cat "$OUT/steps/compare.log"
echo
say "results: $OUT/results.json"
say "report:  $OUT/report.html"
