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

launch train_sft.py --config "$SEAL_ROOT/examples/scripts/pythia.yaml" \
    --pretrain "$SEAL_ROOT/ckpt/pythia-2.8b-aligned" \
    --dataset "$SEAL_DATA/RedOrca" \
    --selector_path "$SEAL_ROOT/ckpt/pythia_softmax.parquet" --topp 0.8 \
    --save_path "$SEAL_ROOT/runs/pythia-seal80" --max_epochs 3 \
    "$@"
