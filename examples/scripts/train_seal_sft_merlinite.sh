#!/usr/bin/env bash
# SEAL stage 2: SFT of Merlinite-7b on the 80 % of RedOrca that the selector ranks highest.
# Needs ckpt/phi3_softmax.parquet (train_selector_phi3.sh). A published .pt works too:
# --selector_path seal_selector_phi3.pt --selector_tokenizer microsoft/Phi-3-mini-128k-instruct \
#     --selector_max_len 2048
# Rows too long for the selector's tokenizer have no score: --unscored drop leaves them out.
# Any flag can be given again, the last one wins; launch.sh tells how to set the launcher.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch train_sft.py --config "$SEAL_ROOT/examples/scripts/merlinite.yaml" \
    --dataset "$SEAL_DATA/RedOrca" \
    --selector_path "$SEAL_ROOT/ckpt/phi3_softmax.parquet" --topp 0.8 --unscored drop \
    --save_path "$SEAL_ROOT/runs/merlinite-seal80" --max_epochs 3 \
    "$@"
