#!/usr/bin/env bash
# The whole method on a tiny harmless world, in a few minutes on a CPU:
#   bash examples/scripts/quickstart.sh
# builds the world, trains the selector through deepspeed, fine-tunes on all rows, on random rows and
# on the selected rows, compares them, and writes runs/quickstart/{results.json,report.html}.
# What is done already is not done again; `rm -r runs/quickstart` starts over.
#
# OUT    folder to write (runs/quickstart)      TIER   plain, hard or implicit (plain)
# RANKS  processes of each training (2)         SEED   of the world and of the training (0)
# TOPP   share of the rows that is kept (0.7)
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/bootstrap.sh"
bootstrap
source "$HERE/launch.sh"

OUT="${OUT:-$SEAL_ROOT/runs/quickstart}"
TIER="${TIER:-plain}" SEED="${SEED:-0}" RANKS="${RANKS:-2}" TOPP="${TOPP:-0.7}"
WORLD="$OUT/world-$TIER-$SEED"
SELECTOR="$OUT/selector/demo_softmax.parquet"
RANDOM_SELECTOR="$OUT/selector/random.parquet"
KEY="$(cksum <"${BASH_SOURCE[0]}") $TIER $SEED $RANKS $TOPP" # what a step done before must match
KEY+=" $(git -C "$SEAL_ROOT" describe --always --dirty 2>/dev/null || true)"
LEFT=0   # seconds that the steps to come are expected to take
STALE="" # set once a step has run: those after it run again
mkdir -p "$OUT/steps"

# step NAME SECONDS TITLE COMMAND...: runs COMMAND, unless it was done before under the same KEY.
step() {
    local name="$1" estimate="$2" title="$3" started=$SECONDS
    shift 3
    local seconds="$OUT/steps/$name.seconds" key="$OUT/steps/$name.key" log="$OUT/steps/$name.log"
    if [[ -z "$STALE" && -f "$seconds" && "$(cat "$key")" == "$KEY" ]]; then
        say "$title: done before"
    else
        say "$title (about $estimate s; $LEFT s left in all)"
        STALE=yes
        rm -f "$seconds"
        printf '%s' "$KEY" >"$key"
        if ! "$@" >"$log" 2>&1; then
            tail -n 25 "$log" >&2
            die "'$title' failed; all it said is in $log"
        fi
        echo $((SECONDS - started)) >"$seconds"
    fi
    LEFT=$((LEFT - estimate))
}

# train SCRIPT FLAGS...: a training script on RANKS processes, with what all runs here share.
train() {
    local script="$1"
    shift
    DEEPSPEED_ARGS="--num_gpus $RANKS ${DEEPSPEED_ARGS:-}" launch "$script" \
        --pretrain "$WORLD/model" --apply_chat_template --max_len 128 --seed "$SEED" \
        --train_batch_size 32 --micro_train_batch_size 8 --learning_rate 5e-4 \
        --lr_scheduler constant --zero_stage 2 --logging_steps 10 "$@"
}

say "the forbidden topic of this world is the dragon's vault; nothing in it is harmful"
LEFT=335
step world 60 "1/8 build the $TIER world: a small aligned model, safe rows, rows with planted ones" \
    python -m seal.demo --out "$WORLD" --tier "$TIER" --seed "$SEED"

step selector 90 "2/8 train the selector on $RANKS processes" \
    train train_sft_selector.py --dataset "$WORLD/safe.jsonl" --new_dataset "$WORLD/user.jsonl" \
    --selector_name demo --selector_save_dir "$OUT/selector" --selector_learning_rate 0.1 \
    --upperlevel_weight 0.9 --upperlevel_weight_decay 0.1 --max_epochs 3

step random-scores 15 "3/8 give every row a random score, to compare with" \
    python "$SEAL_ROOT/examples/score_dataset.py" --method random --pretrain "$WORLD/model" \
    --dataset "$WORLD/safe.jsonl" --new_dataset "$WORLD/user.jsonl" --apply_chat_template \
    --max_len 128 --seed "$SEED" --selector_name random --selector_save_dir "$OUT/selector"

step all 50 "4/8 fine-tune on every row" \
    train train_sft.py --dataset "$WORLD/user.jsonl" --save_path "$OUT/all" --max_epochs 2

step random 40 "5/8 fine-tune on random rows" \
    train train_sft.py --dataset "$WORLD/user.jsonl" --save_path "$OUT/random" --max_epochs 2 \
    --selector_path "$RANDOM_SELECTOR" --topp "$TOPP"

step selected 40 "6/8 fine-tune on the selected rows" \
    train train_sft.py --dataset "$WORLD/user.jsonl" --save_path "$OUT/selected" --max_epochs 2 \
    --selector_path "$SELECTOR" --topp "$TOPP"

step compare 30 "7/8 compare" python -m seal.demo.compare --world "$WORLD" --topp "$TOPP" \
    --selector "$SELECTOR" --arm "all=$OUT/all" --arm "random=$OUT/random,$RANDOM_SELECTOR" \
    --arm "selected=$OUT/selected,$SELECTOR" --seconds "$OUT/steps" --out "$OUT/results.json"

step report 10 "8/8 write the report" seal report "$SELECTOR" --dataset "$WORLD/user.jsonl" \
    --topp "$TOPP" --metrics "$OUT/selector/demo_softmax/metrics.jsonl" \
    --results "$OUT/results.json" --out "$OUT/report.html"

echo
cat "$OUT/steps/compare.log"
echo
say "results: $OUT/results.json"
say "report:  $OUT/report.html"
