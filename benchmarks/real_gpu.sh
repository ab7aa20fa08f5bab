#!/usr/bin/env bash
# The study on real words on one GPU, several processes of it at once:
#
#     bash benchmarks/real_gpu.sh MODEL DATA OUT [--quick]
#
# First the alignment, then every job below with a folder of its own under OUT; then the tables, from
# all of them, into OUT/tables. Started again, finished units are not done again. With --quick the
# sizes only show that every step runs.
#
# PROCESSES  at once (10: each takes 4 to 6 GB)      RATE  of the arms (1.25e-4)
# SEEDS      draws ("0 1 2")                         LIMIT  seconds after which no unit begins (none)
set -uo pipefail
cd "$(dirname "$0")/.."
model=$1 data=$2 out=$3 quick=("${@:4}")
export OMP_NUM_THREADS=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
study=(python benchmarks/real_text.py --pretrain "$model" --data "$data" --seconds "${LIMIT:-1e9}")

work() { # NAME FLAGS..., a line each, the most important first
    local seed
    for seed in ${SEEDS:-0 1 2}; do
        echo "arms-$seed --parts arms --setting ${RATE:-1.25e-4} 0 --seeds $seed --capacity 4096"
        echo "mixed-$seed --parts scores --seeds $seed --safe_sets mixed --capacity 6144"
        echo "half-$seed --parts scores --seeds $seed --safe_sets half --capacity 6144"
        echo "ordinary-$seed --parts scores --seeds $seed --safe_sets ordinary --capacity 6144"
    done
}

job() { # NAME FLAGS...
    local folder=$out/$1
    mkdir -p "$folder"
    if [[ $1 == arms-* && ! -e $folder/units.jsonl ]]; then
        cp "$out/align/units.jsonl" "$folder"
        cp -r "$out/align/work" "$folder"
    fi
    if "${study[@]}" --out "$folder" "${@:2}" "${quick[@]}" >>"$folder/log" 2>&1; then
        echo "$1: done"
    else
        echo "$1: failed, see $folder/log"
    fi
}

job align --parts align
while read -r -a words; do
    job "${words[@]}" &
    while (($(jobs -rp | wc -l) >= ${PROCESSES:-10})); do sleep 1; done
done < <(work)
wait
mapfile -t folders < <(work | sed "s|^\([^ ]*\).*|$out/\1|")
mkdir -p "$out/tables"
python benchmarks/real_tables.py --pretrain "$model" --data "$data" --results "$out/tables" \
    --out "$out/align" "${folders[@]}" "${quick[@]}"
