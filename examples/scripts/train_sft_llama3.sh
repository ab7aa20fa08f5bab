#!/usr/bin/env bash
# Plain SFT of Llama-3-8B-Instruct on every row of RedOrca: the baseline of the published tables.
# Any flag can be given again, the last one wins; launch.sh tells how to set the launcher.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch train_sft.py --config "$SEAL_ROOT/examples/scripts/llama3.yaml" \
    --dataset "$SEAL_DATA/RedOrca" \
    --save_path "$SEAL_ROOT/runs/llama3-sft" --max_epochs 2 \
    "$@"
