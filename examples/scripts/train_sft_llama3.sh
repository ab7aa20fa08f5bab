#!/usr/bin/env bash
# Plain SFT of Llama-3-8B-Instruct on every row of RedOrca: the baseline of the published tables.
# Any flag can be given again, the last one wins; launch.sh tells how to set the launcher.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch train_sft.py \
    --seed 42 \
    --dataset "$SEAL_DATA/RedOrca" \
    --dataset_probs 1.0 \
    --max_samples 112000 \
    --max_len 2048 \
    --pretrain meta-llama/Meta-Llama-3-8B-Instruct \
    --topp 1.0 \
    --save_path "$SEAL_ROOT/runs/llama3-sft" \
    --max_epochs 2 \
    --train_batch_size 64 \
    --micro_train_batch_size 1 \
    --learning_rate 1e-5 \
    --lr_scheduler constant \
    --lora_rank 16 \
    --lora_alpha 16 \
    --target_modules q_proj v_proj \
    --zero_stage 3 \
    --bf16 \
    --gradient_checkpointing \
    --flash_attn \
    --save_steps -1 \
    --logging_steps 1 \
    --eval_steps -1 \
    "$@"
