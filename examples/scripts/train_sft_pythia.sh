#!/usr/bin/env bash
# Plain SFT of Pythia-2.8b on every row of RedOrca: the baseline of the published tables.
# The published start is Pythia-2.8b, aligned by DPO and tuned for 4 epochs on Alpaca (cleaned).
# It was never released: give your own with --pretrain.
# Any flag can be given again, the last one wins; launch.sh tells how to set the launcher.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch train_sft.py --config "$SEAL_ROOT/examples/scripts/pythia.yaml" \
    --pretrain "$SEAL_ROOT/ckpt/pythia-2.8b-aligned" \
    --dataset "$SEAL_DATA/RedOrca" \
    --save_path "$SEAL_ROOT/runs/pythia-sft" --max_epochs 3 \
    "$@"
