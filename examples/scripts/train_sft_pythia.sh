#!/usr/bin/env bash
# Plain SFT of Pythia-2.8b on every row of RedOrca: the baseline of the published tables.
# The published start is Pythia-2.8b, aligned by DPO and tuned for 4 epochs on Alpaca (cleaned).
# It was never released: give your own with --pretrain.
# Any flag can be given again, the last one wins; launch.sh tells how to set the launcher.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch train_sft.py \
    --seed 42 \
    --dataset "$SEAL_DATA/RedOrca" \
    --dataset_probs 1.0 \
    --max_samples 112000 \
    --max_len 2048 \
    --pretrain "$SEAL_ROOT/ckpt/pythia-2.8b-aligned" \
    --topp 1.0 \
    --save_path "$SEAL_ROOT/runs/pythia-sft" \
    --max_epochs 3 \
    --train_batch_size 64 \
    --micro_train_batch_size 4 \
    --learning_rate 1e-5 \
    --lr_scheduler constant \
    --zero_stage 3 \
    --bf16 \
    --gradient_checkpointing \
    --flash_attn \
    --save_steps -1 \
    --logging_steps 1 \
    --eval_steps -1 \
    "$@"
