#!/usr/bin/env bash
# Trains one selector on two nodes and on one, and compares the scores.
#
#     bash benchmarks/two_nodes.sh [OUT]
#
# The nodes are two network namespaces of this machine (needs root and iproute2): own interfaces, own
# addresses, a cable between them, nothing else in common but the disk. One rank a node by
# `torchrun --nnodes 2`, against two ranks on one node. The last line is JSON:
# {"rows", "largest_difference", "same_order", "seconds"}.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
out=${1:-$(mktemp -d)}
mkdir -p "$out"
first=seal-a-$$ second=seal-b-$$

remove() { ip netns del "$first" 2>/dev/null || true; ip netns del "$second" 2>/dev/null || true; }
trap remove EXIT
ip netns add "$first"
ip netns add "$second"
ip link add cable netns "$first" type veth peer name cable netns "$second"
for node in "$first 10.77.0.1" "$second 10.77.0.2"; do
    set -- $node
    ip -n "$1" addr add "$2/24" dev cable
    ip -n "$1" link set cable up
    ip -n "$1" link set lo up
done

export PYTHONPATH=$root:$root/tests${PYTHONPATH:+:$PYTHONPATH}
export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
python - "$out" <<'PYTHON'
import sys
from pathlib import Path

from tiny_world import make_model, make_rows, write_rows

out = Path(sys.argv[1])
make_model(out / "model")
write_rows(out / "safe.jsonl", make_rows(24, seed=1))
write_rows(out / "user.jsonl", make_rows(60, seed=2))
PYTHON

selector() { # NAME LAUNCHER...: train with a launcher
    local name=$1
    shift
    "$@" examples/train_sft_selector.py --pretrain "$out/model" --dataset "$out/safe.jsonl" \
        --new_dataset "$out/user.jsonl" --max_len 64 --max_epochs 2 --train_batch_size 8 \
        --micro_train_batch_size 2 --learning_rate 1e-3 --upperlevel_weight 0.9 --zero_stage 2 \
        --lr_scheduler constant --selector_lr_scheduler constant --selector_learning_rate 0.1 \
        --selector_name "$name" --selector_save_dir "$out"
}
node() { # NAMESPACE RANK: one node of two
    GLOO_SOCKET_IFNAME=cable selector "two-$2" ip netns exec "$1" torchrun --nnodes 2 \
        --nproc_per_node 1 --node_rank "$2" --master_addr 10.77.0.1 --master_port 29500
}

start=$SECONDS
node "$second" 1 >"$out/node1.log" 2>&1 &
other=$!
node "$first" 0 2>&1 | tee "$out/node0.log"
wait "$other" || { cat "$out/node1.log"; exit 1; }
seconds=$((SECONDS - start))
selector one torchrun --standalone --nproc_per_node 2 >"$out/one.log" 2>&1 \
    || { cat "$out/one.log"; exit 1; }

python - "$out" "$seconds" <<'PYTHON'
import json
import sys
from pathlib import Path

import numpy as np

from seal.selection.artefact import read_selection

out = Path(sys.argv[1])
two = read_selection(next(out.glob("two-?_softmax.parquet")))
one = read_selection(out / "one_softmax.parquet")
assert (one.id == two.id).all() and (two.visits == 2).all()
print(json.dumps({
    "rows": len(one),
    "largest_difference": float(np.abs(one.score - two.score).max()),
    "same_order": bool((np.argsort(one.score) == np.argsort(two.score)).all()),
    "seconds": int(sys.argv[2]),
}))
PYTHON
