#!/usr/bin/env bash
# Trains a selector and scores rows on two nodes and on one, and compares. The scoring loses its
# second node in the middle and is started again.
#
#     bash benchmarks/two_nodes.sh [OUT]
#
# The nodes are two network namespaces of this machine (needs root and iproute2): own interfaces, own
# addresses, a cable between them, nothing else in common but the disk. One rank a node by
# `torchrun --nnodes 2`, against two ranks on one node (selector) and one rank (scores). The last
# line is JSON: {"rows", "selector": {"largest_difference", "same_order"}, "scores": {the same},
# "passes_kept": passes that the second start took from the first, "seconds"}.
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

common="--pretrain $out/model --dataset $out/safe.jsonl --new_dataset $out/user.jsonl --max_len 64 \
    --train_batch_size 8 --micro_train_batch_size 2 --learning_rate 1e-3 --zero_stage 2 \
    --lr_scheduler constant --selector_save_dir $out"
selector="examples/train_sft_selector.py $common --selector_name"
scores="examples/score_dataset.py $common --method relative_excess --selector_name"
node() { # NAMESPACE RANK PORT SCRIPT...: one node of two
    local name=$1 rank=$2 port=$3
    shift 3
    GLOO_SOCKET_IFNAME=cable ip netns exec "$name" torchrun --nnodes 2 --nproc_per_node 1 \
        --node_rank "$rank" --master_addr 10.77.0.1 --master_port "$port" "$@"
}
both() { # PORT SCRIPT...: both nodes, to the end
    node "$second" 1 "$@" >"$out/node1.log" 2>&1 &
    local other=$!
    node "$first" 0 "$@" >"$out/node0.log" 2>&1 || { cat "$out/node0.log"; exit 1; }
    wait "$other" || { cat "$out/node1.log"; exit 1; }
}

start=$SECONDS
both 29500 $selector two
torchrun --standalone --nproc_per_node 2 $selector one >"$out/one.log" 2>&1 \
    || { cat "$out/one.log"; exit 1; }

node "$first" 0 29501 $scores both >"$out/lost0.log" 2>&1 &
left=$!
node "$second" 1 29501 $scores both >"$out/lost1.log" 2>&1 &
until [ -e "$out/both_parts/fold0.json" ]; do # the first pass is done
    kill -0 "$left" || { cat "$out"/lost?.log; exit 1; }
    sleep 0.1
done
ip netns pids "$second" | xargs kill -9
if wait "$left"; then echo "the node that was left ended well without the other"; exit 1; fi
touch "$out/lost"
both 29502 $scores both

python - "$out" $scores alone $((SECONDS - start)) <<'PYTHON'
import json
import sys
from pathlib import Path

import numpy as np

from seal.cli.flags import score_parser
from seal.cli.score_dataset import score
from seal.selection.artefact import read_selection

out, flags, seconds = Path(sys.argv[1]), sys.argv[3:-1], int(sys.argv[-1])
score(score_parser().parse_args(flags))


def compared(one: str, other: str) -> dict:
    one, other = (read_selection(out / f"{name}.parquet") for name in (one, other))
    assert (one.id == other.id).all() and (one.visits == other.visits).all()
    return {
        "largest_difference": float(np.abs(one.score - other.score).max()),
        "same_order": bool((np.argsort(one.score) == np.argsort(other.score)).all()),
    }


lost = (out / "lost").stat().st_mtime
kept = [path.stem for path in (out / "both_parts").glob("*.json") if path.stat().st_mtime < lost]
found = {"rows": len(read_selection(out / "both.parquet"))}
found |= {"selector": compared("one_softmax", "two_softmax"), "scores": compared("alone", "both")}
print(json.dumps(found | {"passes_kept": sorted(set(kept) - {"run"}), "seconds": seconds}))
PYTHON
