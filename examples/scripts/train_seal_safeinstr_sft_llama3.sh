#!/usr/bin/env bash
# SEAL stage 2 with SafeInstr: SFT of Llama-3-8B-Instruct on the 80 % of RedOrca that the
# selector ranks highest, with the SafeInstr rows mixed in.
# Needs ckpt/llama3_softmax.parquet (train_selector_llama3.sh). A published .pt works too:
# --selector_path seal_selector_llama3.pt --selector_tokenizer meta-llama/Meta-Llama-3-8B-Instruct \
#     --selector_max_len 2048
# Any flag can be given again, the last one wins; launch.sh tells how to set the launcher.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch train_sft.py --config "$SEAL_ROOT/examples/scripts/llama3.yaml" \
    --dataset "$SEAL_DATA/RedOrca" \
    --safeinstr_dataset "$SEAL_DATA/SafeInstr" \
    --selector_path "$SEAL_ROOT/ckpt/llama3_softmax.parquet" --topp 0.8 \
    --save_path "$SEAL_ROOT/runs/llama3-seal80-safeinstr" --max_epochs 2 \
    "$@"
