#!/usr/bin/env bash
# SEAL stage 1 with Llama-3-8B-Instruct, published settings: trains one logit a row of RedOrca.
# Writes ckpt/llama3_softmax.parquet. The published update is Adam (see docs/method.md for
# why another one is the default elsewhere).
# Any flag can be given again, the last one wins; launch.sh tells how to set the launcher.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch train_sft_selector.py --config "$SEAL_ROOT/examples/scripts/llama3.yaml" \
    --dataset "$SEAL_DATA/BlueOrca" --new_dataset "$SEAL_DATA/RedOrca" \
    --selector_name llama3 --selector_save_dir "$SEAL_ROOT/ckpt" \
    --selector_estimator penalty --selector_activation softmax --selector_optim adam \
    --selector_learning_rate 5e-3 --selector_lr_scheduler constant \
    --upperlevel_weight 1.0 --upperlevel_weight_decay 0.03 --max_epochs 3 \
    "$@"
