#!/usr/bin/env bash
# SEAL stage 1 with Pythia-2.8b, published settings: trains one logit a row of RedOrca.
# Writes ckpt/pythia_softmax.parquet. The published update is Adam (see docs/method.md for
# why another one is the default elsewhere).
# The published start is Pythia-2.8b, aligned by DPO and tuned for 4 epochs on Alpaca (cleaned).
# It was never released: give your own with --pretrain.
# Any flag can be given again, the last one wins; launch.sh tells how to set the launcher.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

launch train_sft_selector.py --config "$SEAL_ROOT/examples/scripts/pythia.yaml" \
    --pretrain "$SEAL_ROOT/ckpt/pythia-2.8b-aligned" \
    --dataset "$SEAL_DATA/BlueOrca" --new_dataset "$SEAL_DATA/RedOrca" \
    --selector_name pythia --selector_save_dir "$SEAL_ROOT/ckpt" \
    --selector_estimator penalty --selector_activation softmax --selector_optim adam \
    --selector_learning_rate 4e-3 --selector_lr_scheduler constant \
    --upperlevel_weight 1.0 --upperlevel_weight_decay 0.02 --max_epochs 2 \
    "$@"
