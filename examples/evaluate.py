"""Measure whether a model is safer, and still useful.

    deepspeed evaluate.py --models base=MODEL seal=ckpt/adapter --harmful harmful.jsonl \\
        --out out/eval
"""

from seal.utils import entry

if __name__ == "__main__":
    entry.run_module("seal.cli.evaluate")
