#!/usr/bin/env bash
# SEAL stage 2 with SafeInstr: SFT of Llama-3-8B-Instruct on the 80 % of RedOrca that the
# selector ranks highest, with the SafeInstr rows mixed in.
# Needs ckpt/llama3_softmax.parquet (train_selector_llama3.sh). A published .pt works too:
# --selector_path seal_selector_llama3.pt --selector_tokenizer meta-llama/Meta-Llama-3-8B-Instruct \
#     --selector_max_len 2048
# Any flag can be given again, the last one wins; launch.sh tells how to set the launcher.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch train_sft.py \
    --seed 42 \
    --dataset "$SEAL_DATA/RedOrca" \
    --dataset_probs 1.0 \
    --safeinstr_dataset "$SEAL_DATA/SafeInstr" \
    --max_samples 112000 \
    --max_len 2048 \
    --pretrain meta-llama/Meta-Llama-3-8B-Instruct \
    --selector_path "$SEAL_ROOT/ckpt/llama3_softmax.parquet" \
    --topp 0.8 \
    --save_path "$SEAL_ROOT/runs/llama3-seal80-safeinstr" \
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
