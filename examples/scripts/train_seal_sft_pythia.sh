#!/usr/bin/env bash
# SEAL stage 2: SFT of Pythia-2.8b on the 80 % of RedOrca that the selector ranks highest.
# Needs ckpt/pythia_softmax.parquet (train_selector_pythia.sh). A published .pt works too:
# --selector_path seal_selector_pyt.pt --selector_tokenizer EleutherAI/pythia-2.8b \
#     --selector_max_len 2048
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
    --selector_path "$SEAL_ROOT/ckpt/pythia_softmax.parquet" \
    --topp 0.8 \
    --save_path "$SEAL_ROOT/runs/pythia-seal80" \
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
