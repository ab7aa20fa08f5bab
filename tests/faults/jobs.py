"""The three jobs that are broken, in the tiniest world, and what an unbroken run of each leaves."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from launch import ROOT, SELECTOR, SFT, launched
from tiny_world import make_model, make_rows, write_rows
from warm import WarmRun

from seal.errors import InputError
from seal.selection.artefact import read_selection

SECONDS = 600  # for a run to its end, on a machine that does other work too
EPOCHS, STEPS = 4, 12
LORA = "--lora_rank 2 --target_modules q_proj --lora_dropout 0.1"
COMMON = (
    "--pretrain {root}/start --max_len 96 --train_batch_size 4 --micro_train_batch_size 2 "
    "--learning_rate 1e-3"
)
SCORED = "--dataset {root}/safe.jsonl --new_dataset {root}/user.jsonl"
TRAINED = f"--max_epochs {EPOCHS} --save_path tuned --save_steps 2 --ckpt_path snapshots"


@dataclass(frozen=True)
class Job:
    """A script, its flags, the files it must leave, and what says how far it is."""

    name: str
    script: Path
    flags: str
    artefact: str | None  # a Parquet file
    weights: str | None  # a safetensors file
    log: str | None  # metrics.jsonl

    def words(self, root: Path) -> list[str]:
        """The flags of a first start."""
        return f"{COMMON} {self.flags}".format(root=root).split()

    def resume(self, root: Path, folder: Path) -> list[str]:
        """The flags that go on with whatever a broken run has left."""
        snapshots = list(folder.glob("snapshots/*/step_*/manifest.json"))
        return [*self.words(root), "--load_checkpoint" if snapshots else "--overwrite"]

    def command(self, root: Path) -> list:
        """The whole command of a first start, on two ranks."""
        return launched(self.script, *self.words(root))


JOBS = {
    "selector": Job(
        "selector",
        SELECTOR,
        f"{SCORED} {TRAINED} --selector_estimator penalty_gap --selector_learning_rate 0.1 {LORA}",
        artefact="ckpt/sft_selection_logits_softmax.parquet",
        weights="tuned/adapter_model.safetensors",
        log="ckpt/sft_selection_logits_softmax/metrics.jsonl",
    ),
    "sft": Job(
        "sft",
        SFT,
        "--dataset {root}/user.jsonl --zero_stage 3 " + TRAINED,
        artefact=None,
        weights="tuned/model.safetensors",
        log="tuned/metrics.jsonl",
    ),
    "scoring": Job(
        "scoring",
        ROOT / "examples/score_dataset.py",
        f"{SCORED} --method relative_excess --selector_name scores --lora_rank 2",
        artefact="ckpt/scores.parquet",
        weights=None,
        log=None,
    ),
}


def make_world(root: Path) -> None:
    """A model and rows; every dataset cache goes below it."""
    make_model(root / "start")
    write_rows(root / "safe.jsonl", make_rows(6, seed=1))
    write_rows(root / "user.jsonl", make_rows(12))
    os.environ["HF_DATASETS_CACHE"] = str(root / "cache")


def finish(job: Job, root: Path, folder: Path) -> WarmRun:
    """Runs a job to its end, from where it is.

    Raises:
        AssertionError: it takes longer than `SECONDS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = WarmRun(job.script, job.resume(root, folder), folder)
    if not run.wait(SECONDS):
        run.kill()
        raise AssertionError(f"no end after {SECONDS} s: {run.output[-3000:]}")
    return run


def losses(job: Job, straight: Path, folder: Path) -> list[str]:
    """What a finished run has lost against the straight one, in words; [] for nothing."""
    found = []
    if job.artefact:
        one, other = (read_selection(path / job.artefact) for path in (straight, folder))
        if not one.table.equals(other.table):
            found.append("the artefact differs")
        if job.name == "selector" and not np.all(other.visits == EPOCHS):
            found.append(f"rows visited {sorted(set(other.visits.tolist()))} times")
    if job.weights:
        one, other = ((path / job.weights).read_bytes() for path in (straight, folder))
        if one != other:
            found.append("the weights differ")
        one, other = (visible((path / job.weights).parent) for path in (straight, folder))
        if one != other:
            found.append(f"files of the model: {sorted(one ^ other)}")
    if job.log:
        lines = [json.loads(line) for line in (folder / job.log).read_text().splitlines()]
        steps = [line["step"] for line in lines if "train/lr" in line]
        if steps != list(range(1, STEPS + 1)):
            found.append(f"steps {steps}")
    return found


def visible(directory: Path) -> set[str]:
    """Names in a directory that do not begin with a dot."""
    return {path.name for path in directory.iterdir() if path.name[0] != "."}


def partial_outputs(folder: Path) -> list[str]:
    """Files under a final name that do not read; what lies in a hidden folder has none yet."""
    broken = []
    for path in folder.glob("ckpt/*.parquet"):
        try:
            read_selection(path)
        except InputError as error:
            broken.append(str(error))
    for path in folder.rglob("*.json"):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            json.loads(path.read_text())
        except ValueError as error:
            broken.append(f"{path}: {error}")
    return broken
