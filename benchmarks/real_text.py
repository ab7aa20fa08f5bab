"""Real text, end to end: a small Llama from scratch, selectors and baselines, SFT on the kept rows.

    python benchmarks/real_text.py --data ../shared/data --out runs/real_text

Every training goes through the `deepspeed` launcher on 2 ranks of this machine's CPU. Started again
with the same `--out`, it goes on where it stopped. Writes `<out>/results.json`; the
last line of stdout is the same JSON. Needs the research data, which is not part of the project.
"""

import argparse
import json
import shlex
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from launching import Launcher, machine, write_json
from real_text_parts import MAX_LEN, draw, generate, identity, new_model, read_lines, write_pairs
from real_text_scores import Truth, judge, markdown, references

from seal.errors import InputError
from seal.provenance import commit, versions
from seal.selection.artefact import read_selection

TOPP = 0.8
SCRATCH = "--train_batch_size 16 --learning_rate 2e-3 --lr_scheduler cosine"
TUNING = "--train_batch_size 32 --learning_rate 5e-4 --lr_scheduler constant"
PENALTY = "train_sft_selector.py --selector_learning_rate"
MIRROR = f"{PENALTY} 0.1 --upperlevel_weight 0.9 --upperlevel_weight_decay 0.1"
METHODS = {
    "penalty, mirror": f"{MIRROR} --selector_estimator penalty --selector_optim mirror",
    "penalty, adam (published)": f"{PENALTY} 5e-3 --upperlevel_weight 1.0 "
    "--upperlevel_weight_decay 0.03 --selector_estimator penalty --selector_optim adam",
    "penalty_gap, mirror": f"{MIRROR} --selector_estimator penalty_gap --selector_optim mirror",
    "excess_loss": "score_dataset.py --method excess_loss",
    "relative_excess": "score_dataset.py --method relative_excess",
    "safe_loss": "score_dataset.py --method safe_loss",
    "influence": "score_dataset.py --method influence",
    "perplexity": "score_dataset.py --method perplexity",
    "ifd": "score_dataset.py --method ifd",
    "dsir": "score_dataset.py --method dsir",
    "random": "score_dataset.py --method random",
}


@dataclass(frozen=True)
class Sizes:
    """How large everything is; `safe_rows` is what one-pass methods tune on."""

    rows: int = 2000
    safe_rows: int = 2000
    whole_safe_file: bool = True  # for the base model and the bilevel selectors
    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 4
    base_epochs: int = 1
    selector_epochs: int = 1
    sft_epochs: int = 1
    resamples: int = 1000


QUICK = Sizes(200, 100, False, 1024, 64, 2, 1, 1, 1, 100)


def claim(out: Path, settings: dict) -> None:
    """Makes `out` the folder of a run with these settings.

    Raises:
        InputError: it holds a run with others, whose finished steps would not fit.
    """
    path = out / "settings.json"
    if not path.exists():
        write_json(path, settings)
    elif json.loads(path.read_text()) != settings:
        raise InputError(f"{out} holds a run with other settings; give another --out")


def last_loss(folder: Path) -> float:
    """Mean of the last 20 logged training losses, nats a token."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    losses = [
        metrics["train/loss"] for metrics in map(json.loads, lines) if "train/loss" in metrics
    ]
    return round(float(np.mean(losses[-20:])), 3)


class RealText:
    """The steps of the check, in order.

    Args:
        data: folder of safe.jsonl.gz and mix.jsonl.gz.
        out: folder to write.
        sizes: of everything.
        seed: of the draw, the model and every training.
    """

    def __init__(self, data: Path, out: Path, sizes: Sizes, seed: int):
        self.out, self.sizes, self.seed = out, sizes, seed
        self.launcher = Launcher(out)
        claim(out, {"sizes": asdict(sizes), "seed": seed})
        safe = read_lines(data / "safe.jsonl.gz")
        drawn = draw(read_lines(data / "mix.jsonl.gz"), sizes.rows, seed)
        self.ids, self.truth = [identity(row) for row in drawn], Truth(drawn)
        self.counts = Counter(f"{row['provenance']}, {row['source']}" for row in drawn)
        part = draw(safe, sizes.safe_rows, seed)
        self.harmless = [row["prompt"] for row in part if row["source"] == "alpaca_t45"][:5]
        self.rows, self.safe_part = out / "data/rows.jsonl", out / "data/safe_part.jsonl"
        write_pairs(self.rows, drawn)
        write_pairs(self.safe_part, part)
        self.safe = data / "safe.jsonl.gz" if sizes.whole_safe_file else self.safe_part
        self.safe_content = safe if sizes.whole_safe_file else part

    def common(self, training: str) -> list[str]:
        """Flags of every run, beside those of its `training`."""
        flags = f"--apply_chat_template --max_len {MAX_LEN} --seed {self.seed} --zero_stage 2 "
        return f"{flags} --micro_train_batch_size 8 {training}".split()

    def base(self) -> dict:
        """Trains the base model from scratch on every token of the safe rows."""
        start, folder = self.out / "untrained", self.out / "base"
        sizes = self.sizes
        shape = sizes.vocabulary, sizes.hidden, sizes.layers
        parameters = new_model(start, self.safe_content, shape, self.seed)
        flags = ["--pretrain", start, "--dataset", self.safe, "--save_path", folder]
        flags += ["--pretrain_mode", "--max_epochs", sizes.base_epochs]
        record = self.launcher.run("base", "train_sft.py", *flags, *self.common(SCRATCH))
        loss = last_loss(folder)
        return {"parameters": parameters, "loss": loss, "seconds": record["seconds"]}

    def score(self, method: str) -> tuple[Path, dict]:
        """Scores the rows by one method; returns the artefact's path and the step's record."""
        script, *flags = METHODS[method].split()
        name = "".join(letter if letter.isalnum() else "_" for letter in method)
        bilevel = script == "train_sft_selector.py"
        epochs = ["--max_epochs", self.sizes.selector_epochs] if bilevel else []
        safe = self.safe if bilevel else self.safe_part
        flags += ["--pretrain", self.out / "base", "--dataset", safe, "--new_dataset", self.rows]
        flags += ["--selector_name", name, "--selector_save_dir", self.out / "selectors", *epochs]
        record = self.launcher.run(name, script, *flags, *self.common(TUNING))
        suffix = "_softmax" if bilevel else ""
        return self.out / f"selectors/{name}{suffix}.parquet", record

    def judged(self, method: str) -> dict:
        """Scores by one method, and how well it answers the two questions."""
        path, record = self.score(method)
        selection = read_selection(path)
        wrong = [row for row in selection.row if self.ids[row] != bytes(selection.id[row]).hex()]
        if wrong or len(selection) != len(self.ids):
            raise InputError(f"{path} holds {len(selection)} rows, {len(wrong)} of them misnamed")
        spent = {name: record[name] for name in ("seconds", "cpu_seconds")}
        answers = judge(selection.score, self.truth, TOPP, self.sizes.resamples)
        return {"method": method, "selector": str(path), "supervised": False, **answers, **spent}

    def tuned(self, selector: Path) -> dict:
        """SFT on the kept rows; the result loads in transformers and generates."""
        folder = self.out / "tuned"
        flags = ["--pretrain", self.out / "base", "--dataset", self.rows, "--save_path", folder]
        flags += ["--selector_path", selector, "--topp", TOPP]
        flags += ["--max_epochs", self.sizes.sft_epochs]
        self.launcher.run("sft", "train_sft.py", *flags, *self.common(TUNING))
        return {
            "selector": selector.name,
            "topp": TOPP,
            "loss": last_loss(folder),
            "generated": generate(folder, self.harmless),
        }

    def run(self, methods: list[str]) -> dict:
        """Everything that results.json holds."""
        base = self.base()
        scores = [self.judged(method) for method in methods]
        tuned = self.tuned(Path(scores[0]["selector"]))
        steps = self.launcher.records
        return {
            "format": "seal-real-text-1",
            "note": f"weak: {base['parameters'] / 1e6:.1f} M parameters, trained from scratch on "
            "the safe rows only; one training seed; intervals are over prompts",
            "n": {"rows": len(self.ids), **dict(sorted(self.counts.items()))},
            "sizes": asdict(self.sizes),
            "seed": self.seed,
            "base": base,
            "scores": scores,
            "references": references(self.truth, self.sizes.resamples),
            "sft": tuned,
            "steps": steps,
            "seconds": round(sum(step["seconds"] for step in steps), 1),
            "cpu_seconds": round(sum(step["cpu_seconds"] for step in steps), 1),
            "machine": machine(),
            "versions": versions(),
            "commit": commit(),
            "command": f"python benchmarks/real_text.py {shlex.join(sys.argv[1:])}",
        }


def main() -> int:
    """Runs the check, prints a table and the JSON; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of safe.jsonl.gz and mix.jsonl.gz")
    add("--out", type=Path, required=True, help="folder to write")
    add("--rows", type=int, help=f"rows drawn from mix.jsonl.gz (default {Sizes.rows})")
    add("--base_epochs", type=int, help=f"from scratch (default {Sizes.base_epochs})")
    add("--selector_epochs", type=int, help=f"bilevel (default {Sizes.selector_epochs})")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    add("--seed", type=int, default=0, help="of the draw and the trainings (default 0)")
    add("--quick", action="store_true", help="sizes that only show that every step runs")
    args = parser.parse_args()
    sizes = QUICK if args.quick else Sizes()
    asked = {"rows": args.rows, "selector_epochs": args.selector_epochs}
    asked |= {"base_epochs": args.base_epochs}
    sizes = replace(sizes, **{name: value for name, value in asked.items() if value})
    try:
        results = RealText(args.data, args.out, sizes, args.seed).run(args.methods)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(args.out / "results.json", results)
    print(markdown(results))
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
