#!/usr/bin/env bash
# What one GPU says of this code, within a few minutes:
#
#     bash benchmarks/gpu.sh [OUT [NAMES]]
#
# In turn, each with its own result in OUT (default benchmarks/results) as soon as it is there:
#   laws      packed rows against rows alone, checkpointing, LoRA and full, ZeRO 0, 2, 3, resume
#   selector  published against ours, and ours with Liger's kernels, at the shapes and flags of the
#             published scripts, with and without weight on the row loss; a profile of one step
#   sft       ours against TRL's SFTTrainer
#   head      the loss of the head: ours, Liger's, full logits
# NAMES is an expression ("laws|head"; default: these four). Longer ones stand behind it: unchecked
# (no checkpointing), zero2, zero3, full-rows, phi3.
#
# BUDGET (seconds, default 280) is shared among the parts; one that fails, or runs out of time or
# memory, says so and leaves its log, and the next begins. DEVICE=cpu MODEL=llama-tiny BATCH=8 tries
# the script where there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results} names=${2:-laws|selector|sft|head}
device=${DEVICE:-cuda} model=${MODEL:-llama3-8B} batch=${BATCH:-64} budget=${BUDGET:-280}
mkdir -p "$out"
unfinished=()

run() { # NAME SHARE COMMAND...: in its share (%) of the budget, which stands for ALLOWED
    local name=$1 seconds=$((budget * $2 / 100)) started=$SECONDS status
    shift 2
    [[ $name =~ ^($names)$ ]] || return 0
    echo "== $name, up to $seconds s"
    timeout $((seconds + 25)) "${@//ALLOWED/$seconds}" >"$out/gpu_$name.log" 2>&1
    status=$?
    grep -E '^(sched|published|ours|liger|trl|head|sft,|selector,|step)|passed|failed' \
        "$out/gpu_$name.log"
    echo "   $((SECONDS - started)) s"
    ((status == 0)) || unfinished+=("$name (status $status): $out/gpu_$name.log")
}

measure() { # NAME SHARE FLAGS...: the step, at the flags of the published scripts
    local name=$1 share=$2
    shift 2
    run "$name" "$share" python benchmarks/step.py --device "$device" --model "$model" --bf16 \
        --lora_rank 16 --zero_stage 0 --train_batch_size "$batch" --max_rows 1000 --steps 6 \
        --warm_up 2 --seconds ALLOWED --out "$out/gpu_$name.json" "$@"
}

checked=--gradient_checkpointing kernels=kernels
[[ $device == cuda ]] || kernels=both
run laws 22 python -m pytest -q tests/test_device.py
measure selector 40 $checked --schedule $kernels --phase gamma gamma0 \
    --micro_train_batch_size 8 1 --profile "$out/gpu_profile.txt"
measure sft 30 $checked --work sft --schedule ours
run head 8 python benchmarks/head.py --device "$device" --out "$out/gpu_head.json"
measure unchecked 25 --schedule ours --phase gamma0 gamma
measure zero2 40 $checked --zero_stage 2 --phase gamma0 gamma
measure zero3 40 $checked --zero_stage 3 --phase gamma0 gamma
measure full-rows 40 $checked --full_rows --train_batch_size 16
measure phi3 40 $checked --model phi3-mini --phase gamma0 gamma
((${#unfinished[@]} == 0)) || printf 'not finished: %s\n' "${unfinished[@]}"
