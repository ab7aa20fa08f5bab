"""What checkpoints cost, and whether bf16 scores rank the rows as float32 scores do.

    python benchmarks/robustness.py --out runs/robustness

Builds the demo's plain world, trains Algorithm 1 on it in float32 with a checkpoint every
`SAVE_STEPS` steps, then in bf16. The cost of a checkpoint is the median time of a step after which
one was written, less the median time of the others: the load of the machine is in both. Prints one
line of JSON.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from launching import Launcher, machine, write_json
from scipy.stats import spearmanr

from seal.demo import Plan, build
from seal.selection.artefact import kept_mask, read_selection

SAVE_STEPS, EVERY, TOPP = 5, 50, 0.7
FLAGS = (
    "--selector_estimator penalty_gap --apply_chat_template --max_len 128 --train_batch_size 32 "
    "--micro_train_batch_size 8 --learning_rate 5e-4 --lr_scheduler constant --max_ckpt_num 2"
)


def train(launcher: Launcher, world: Path, name: str, *extra: object) -> Path:
    """Trains a selector; returns its path without suffix."""
    inputs = ["--pretrain", world / "model", "--dataset", world / "safe.jsonl"]
    inputs += ["--new_dataset", world / "user.jsonl", "--selector_name", name]
    where = launcher.folder.parent / "ckpt"
    outputs = ["--selector_save_dir", where, "--ckpt_path", where / f"{name}_snapshots"]
    launcher.run(name, "train_sft_selector.py", *FLAGS.split(), *inputs, *outputs, *extra)
    return where / f"{name}_softmax"


def checkpoint_cost(log: Path) -> dict:
    """Seconds of a step and of a checkpoint, and the share of one every `EVERY` steps."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines if "train/lr" in line}
    steps = sorted(seconds)
    taken = {step: seconds[step] - seconds[step - 1] for step in steps if step - 1 in seconds}
    after = [taken[step] for step in taken if step % SAVE_STEPS == 1]
    other = [taken[step] for step in taken if step % SAVE_STEPS != 1]
    step, save = float(np.median(other)), float(np.median(after) - np.median(other))
    return {
        "step_seconds": round(step, 4),
        "step_quartiles": [round(float(q), 4) for q in np.percentile(other, [25, 75])],
        "checkpoint_seconds": round(save, 4),
        "checkpoints": len(after),
        f"share_every_{EVERY}_steps": round(save / (save + EVERY * step), 4),
    }


def agreement(one: Path, other: Path) -> dict:
    """How alike two selectors of the same rows rank and keep them."""
    first, second = (read_selection(f"{path}.parquet").score for path in (one, other))
    kept = [kept_mask(score, TOPP) for score in (first, second)]
    return {
        "rows": len(first),
        "spearman": round(float(spearmanr(first, second).statistic), 4),
        f"kept_by_both_at_{TOPP}": round(float((kept[0] & kept[1]).sum() / kept[0].sum()), 4),
    }


def main() -> None:
    """Runs both trainings and prints what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"), help="working folder")
    parser.add_argument("--world", type=Path, help="a demo world that is there already")
    parser.add_argument("--epochs", type=int, default=3, help="of both trainings (default 3)")
    args = parser.parse_args()
    world = args.world
    if world is None:
        world = args.out / "world"
        build(Plan(), world)
    launcher = Launcher(args.out)
    epochs = ("--max_epochs", args.epochs)
    exact = train(launcher, world, "float32", *epochs, "--save_steps", SAVE_STEPS)
    short = train(launcher, world, "bf16", *epochs, "--bf16")
    result = {
        "checkpoints": checkpoint_cost(exact / "metrics.jsonl"),
        "bf16_against_float32": agreement(exact, short),
        "runs": launcher.records,
        "machine": machine(),
    }
    write_json(args.out / "robustness.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
