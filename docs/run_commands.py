"""Runs the commands of docs/commands.md and writes down what they print.

    python docs/run_commands.py            # the page again, as the commands are now
    python docs/run_commands.py --check    # status 1 where the page is not what they print

They run in a small world made for it: user.jsonl, two selectors, a model, an adapter and a bare
tensor. What differs between machines (versions, sizes, what is installed) is not compared.
"""

import argparse
import contextlib
import difflib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from seal.command import main as seal
from seal.datasets import load_rows
from seal.demo.model import new_model, train_tokenizer
from seal.demo.world import Plan, make_rows
from seal.selection.artefact import selection_meta, write_selection

PAGE = Path(__file__).with_name("commands.md")
BLOCK = re.compile(r"(?<=```console\n)(\$ .*?)(?=```)", flags=re.S)
LABEL = {  # subcommand -> what of its lines is the same everywhere
    "doctor": slice(9, 24),
    "report": slice(0, 17),
    "score-new": slice(0, 15),
}
VARIES = ("made by", "commit")  # lines of `seal show`
COMMIT = re.compile(r"(?<=, commit )\w+")


def make_world() -> None:
    """Fills the working directory; equal on every machine."""
    rows = make_rows(Plan(rows=200, safe_rows=100, aligned_rows=200, eval_rows=10))
    for name in ("user", "safe"):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows[name])
        Path(f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    unsafe = np.array([row["provenance"] != "benign" for row in rows["user"]])
    for seed, name in enumerate(("a.parquet", "b.parquet")):
        write_selector(Path(name), unsafe, seed)
    torch.save(torch.arange(150.0), "published.pt")

    tokenizer = train_tokenizer([row["response"] for row in rows["aligned"]])
    model = new_model(tokenizer, seed=0)
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    model.name_or_path = "model"
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained("adapter")


def write_selector(path: Path, unsafe: np.ndarray, seed: int) -> None:
    """Scores that rank most of the unsafe rows last."""
    found = load_rows("user.jsonl")
    score = np.random.default_rng(seed).normal(0, 0.5, len(found)) - 2.0 * unsafe
    columns = {name: found[name][:] for name in ("id", "occurrence", "row")}
    columns |= {"score": score, "logit": score, "weight": np.exp(score)}
    columns |= {"visits": np.full(len(found), 3), "loss": 1.5 - 0.4 * score}
    meta = selection_meta(
        method="penalty_gap",
        arguments={"max_epochs": 3, "selector_activation": "softmax"},
        fingerprint=found._fingerprint,
        raw=len(found),
        skipped={},
        model="model",
        tokenizer="model",
        max_len=512,
        seed=seed,
    )
    write_selection(path, columns, meta)


def run(command: str) -> str:
    """What a command prints, its complaint included."""
    program, *words = shlex.split(command)
    if program != "seal":
        return subprocess.run(["bash", "-c", command], capture_output=True, text=True).stdout
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with contextlib.suppress(SystemExit):  # --help
            seal(words)
    complaint = re.findall(r"^error: .*\n", err.getvalue(), flags=re.M)
    return "".join([out.getvalue(), *complaint]).replace(sys.prefix, ".venv")


def run_block(match: re.Match) -> str:
    """A block of the page with its commands run again."""
    commands = [line[2:] for line in match[0].splitlines() if line.startswith("$ ")]
    return "".join(f"$ {command}\n{run(command)}" for command in commands)


def comparable(page: str) -> list[str]:
    """The page's lines, without what another machine prints otherwise."""
    lines, label = [], slice(None)
    for line in page.splitlines():
        if line.startswith(("$ ", "```")):
            words = line.split()
            label = LABEL.get(words[2] if words[:2] == ["$", "seal"] else "", slice(None))
            lines.append(line)
        else:
            line = line[:7] if line.startswith(VARIES) else line[label]
            lines.append(COMMIT.sub("...", line))
    return lines


def main() -> int:
    """Runs the page's commands; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    os.environ |= {"COLUMNS": "100", "HF_HUB_OFFLINE": "1"}
    old, back = PAGE.read_text(encoding="utf-8"), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with contextlib.redirect_stdout(sys.stderr):
            make_world()
        new = BLOCK.sub(run_block, old)
        os.chdir(back)
    if not check:
        PAGE.write_text(new, encoding="utf-8")
        return 0
    changes = list(difflib.unified_diff(comparable(old), comparable(new), "page", "now", n=0))
    print(*changes, sep="\n")
    return 1 if changes else 0


if __name__ == "__main__":
    sys.exit(main())
