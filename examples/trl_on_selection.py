"""TRL's SFTTrainer on the rows that a selector keeps: the selection is a file, any trainer will do.

    python trl_on_selection.py --pretrain MODEL --dataset user.jsonl --selector_path S --topp 0.8 \\
        --save_path OUT

Rows of every schema become TRL's prompt and completion; the last answer is what is learned.
"""

import argparse

import torch
from trl import SFTConfig, SFTTrainer

import seal
from seal.cli import flags as cli
from seal.datasets import load_rows
from seal.datasets.prompts import readable, whole
from seal.utils import entry


def parser() -> cli.Parser:
    """The flags of this script."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pretrain", required=True, help="model directory or hub name")
    add("--dataset", required=True, help="the rows that were scored, as in stage 1")
    add("--selector_path", required=True, help="the selector (.parquet)")
    add("--topp", type=float, required=True, help="share of the scored rows kept, in (0, 1]")
    add("--unscored", default="error", help="rows without a score: error, drop or keep")
    add("--save_path", required=True, help="directory of the model")
    add("--max_epochs", type=float, default=1, help="passes over the kept rows (default 1)")
    add("--batch_size", type=int, default=8, help="rows a step on each device (default 8)")
    add("--max_len", type=int, default=2048, help="tokens a row (default 2048)")
    add("--learning_rate", type=float, default=1e-5, help="AdamW's peak rate (default 1e-5)")
    return parser


def main() -> None:
    """Selects, trains, saves."""
    args = parser().parse_args()
    rows = readable(load_rows(args.dataset))
    kept = seal.select(rows, args.selector_path, args.topp, unscored=args.unscored)
    print(f"kept {len(kept)} of {len(rows)} rows at topp {args.topp:g}")

    on_gpu = torch.cuda.is_available()
    config = SFTConfig(
        output_dir=args.save_path,
        num_train_epochs=args.max_epochs,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        max_length=args.max_len,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        report_to=[],
        save_strategy="no",
        logging_steps=10,
    )
    trainer = SFTTrainer(
        args.pretrain,
        config,
        train_dataset=kept.map(as_pair, remove_columns=kept.column_names),
    )
    trainer.train()
    trainer.save_model(args.save_path)


def as_pair(row: dict) -> dict:
    """TRL's conversational prompt and completion; its loss is on the completion alone."""
    messages, tools = whole(row["messages"], row.get("extra"))
    pair = {"prompt": messages[:-1], "completion": messages[-1:]}
    return pair | ({"tools": tools} if tools else {})


if __name__ == "__main__":
    entry.run(main)
