#!/usr/bin/env bash
# SEAL stage 2 with SafeInstr: SFT of Merlinite-7b on the 80 % of RedOrca that the
# selector ranks highest, with the SafeInstr rows mixed in.
# Needs ckpt/phi3_softmax.parquet (train_selector_phi3.sh). A published .pt works too:
# --selector_path seal_selector_phi3.pt --selector_tokenizer microsoft/Phi-3-mini-128k-instruct \
#     --selector_max_len 2048
# Rows too long for the selector's tokenizer have no score: --unscored drop leaves them out.
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
    --pretrain ibm/merlinite-7b \
    --selector_path "$SEAL_ROOT/ckpt/phi3_softmax.parquet" \
    --topp 0.8 \
    --unscored drop \
    --save_path "$SEAL_ROOT/runs/merlinite-seal80-safeinstr" \
    --max_epochs 3 \
    --train_batch_size 64 \
    --micro_train_batch_size 4 \
    --learning_rate 1e-5 \
    --lr_scheduler cosine \
    --lora_rank 16 \
    --lora_alpha 16 \
    --target_modules q_proj v_proj \
    --zero_stage 3 \
    --bf16 \
    --gradient_checkpointing \
    --save_steps -1 \
    --logging_steps 1 \
    --eval_steps -1 \
    "$@"
