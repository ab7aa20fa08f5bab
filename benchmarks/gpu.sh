#!/usr/bin/env bash
# The step on one GPU, published against ours, at the shapes and flags of the published scripts:
#
#     bash benchmarks/gpu.sh [OUT [NAMES]]
#
# Writes OUT/gpu_*.json (benchmarks/results) of the measurements whose names match the expression
# NAMES, such as "llama3-8B-(gamma|sft)" (default: all). A run that does not fit in memory leaves its
# log behind and the others go on: a schedule that needs more memory than there is has lost that line.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results} names=${2:-.}
mkdir -p "$out"
published=(--device cuda --bf16 --lora_rank 16 --gradient_checkpointing --train_batch_size 64
    --micro_train_batch_size 1 --max_len 2048 --steps 20 --max_rows 4000)

measure() { # NAME FLAGS...
    local name=$1
    shift
    [[ $name =~ $names ]] || return 0
    echo "== $name"
    python benchmarks/step.py "${published[@]}" "$@" --out "$out/gpu_$name.json" \
        >"$out/gpu_$name.log" 2>&1 || echo "   did not finish: $out/gpu_$name.log"
    tail -n 6 "$out/gpu_$name.log" | head -n 5
}

for model in llama3-8B phi3-mini; do
    for stage in 0 2 3; do
        measure "$model-zero$stage-gamma0" --model $model --zero_stage $stage
    done
    measure "$model-gamma" --model $model --zero_stage 0 --phase gamma
    measure "$model-micro8" --model $model --zero_stage 0 --micro_train_batch_size 8
    measure "$model-full-rows" --model $model --zero_stage 0 --full_rows --train_batch_size 16
    measure "$model-sft" --model $model --zero_stage 0 --work sft
    measure "$model-compiled" --model $model --zero_stage 0 --schedule ours-compiled
    measure "$model-liger" --model $model --zero_stage 0 --schedule ours-liger
done
