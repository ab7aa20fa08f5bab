"""Answer a prompt file with a model.

deepspeed batch_inference.py --pretrain MODEL --prompts prompts.jsonl --output_path out/a.json
"""

from seal.utils import entry

if __name__ == "__main__":
    entry.run_module("seal.cli.batch_inference")
