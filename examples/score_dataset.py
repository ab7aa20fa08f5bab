"""Score every row of a dataset by one of the one-pass methods.

    deepspeed score_dataset.py --method relative_excess --pretrain MODEL --dataset safe.jsonl \\
        --new_dataset user.jsonl
"""

from seal.utils import entry

if __name__ == "__main__":
    entry.run_module("seal.cli.score_dataset")
