"""Supervised fine-tuning on the rows a selector keeps.

deepspeed train_sft.py --pretrain MODEL --dataset user.jsonl --selector_path S --topp 0.8
"""

from seal.utils import entry

if __name__ == "__main__":
    entry.run_module("seal.cli.train_sft")
