"""Train a data selector by bilevel optimisation.

deepspeed train_sft_selector.py --pretrain MODEL --dataset safe.jsonl --new_dataset user.jsonl
"""

from seal.utils import entry

if __name__ == "__main__":
    entry.run_module("seal.cli.train_sft_selector")
