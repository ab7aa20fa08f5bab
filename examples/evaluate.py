"""Measure whether a model is safer, and still useful.

    deepspeed evaluate.py --models base=MODEL seal=ckpt/adapter --harmful harmful.jsonl \\
        --out out/eval
"""

from seal.cli.evaluate import main
from seal.utils import entry

if __name__ == "__main__":
    entry.run(main)
