"""The arms of benchmarks/selection.py: each runs the script that a user runs, in this process."""

import contextlib
import io
import json
import shlex
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from selection_table import AGAIN

from seal.assess.prompts import read_records
from seal.cli import flags
from seal.cli.score_dataset import score
from seal.cli.train_sft_selector import train
from seal.datasets import SFTDataset, load_rows, tokenize_rows
from seal.demo import Plan
from seal.demo.world import make_rows
from seal.models.actor import ModelSettings
from seal.selection.artefact import Selection, read_selection
from seal.selection.calibration import auto_topp
from seal.trainer.passes import Engines
from seal.utils.strategy import DeepspeedStrategy, Zero
from seal.utils.tokenizer import get_tokenizer

BATCH, MAX_LEN, MICRO = 32, 128, 8
COMMON = (
    f"--apply_chat_template --max_len {MAX_LEN} --train_batch_size {BATCH} --zero_stage 0 "
    f"--micro_train_batch_size {MICRO} --learning_rate 5e-4 --lr_scheduler constant"
)
LOOP = "--max_epochs 3 --selector_estimator"
PUBLISHED = (
    "--selector_optim adam --selector_learning_rate 5e-3 --upperlevel_weight 1.0 "
    "--upperlevel_weight_decay 0.03"
)
# arm -> the flags that make it what it is; the loops' begin with LOOP
METHODS = {
    "random": "--method random",
    "random_again": "--method random",
    "dsir": "--method dsir",
    "perplexity": "--method perplexity",
    "ifd": "--method ifd",
    "influence": "--method influence",
    "safe_loss": "--method safe_loss",
    "excess_loss": "--method excess_loss",
    "relative_excess": "--method relative_excess",
    "relative_excess_auto": (
        "--method relative_excess --canary_fraction 0.5 --canary_dataset {world}/canaries.jsonl"
    ),
    "pu_probe": "--method pu_probe",
    "probe": "--method probe --unsafe_dataset {world}/canaries.jsonl",
    "knn": "--method knn --unsafe_dataset {world}/canaries.jsonl",
    "probe_other_kind": "--method probe --unsafe_dataset {work}/other_kind.jsonl",
    "published": f"{LOOP} penalty {PUBLISHED}",
    "published_1_epoch": f"{LOOP} penalty {PUBLISHED} --max_epochs 1",
    "penalty": f"{LOOP} penalty",
    "penalty_gap": f"{LOOP} penalty_gap",
    "penalty_gap_1_epoch": f"{LOOP} penalty_gap --max_epochs 1",
}
RATES, WEIGHTS = ("0.01", "0.1", "1.0"), ("0.9 0.1", "1.0 0.03", "0.5 0.0")
for _estimator, _rate, _weight in product(("penalty", "penalty_gap"), RATES, WEIGHTS):
    _upper, _decay = _weight.split()
    METHODS[f"{_estimator}@{_rate},{_upper},{_decay}"] = (
        f"{LOOP} {_estimator} --selector_learning_rate {_rate} --upperlevel_weight {_upper} "
        f"--upperlevel_weight_decay {_decay}"
    )
SAFEINSTR = {"safeinstr_100": 100, "safeinstr_500": 500, "relative_excess_safeinstr_100": 100}
ARMS = ("all", "oracle", *METHODS, "penalty_gap_logit", *SAFEINSTR)
CONFIDENCE = 0.95


class Choice(NamedTuple):
    """What an arm chose: score float [N] (higher = keep; None keeps all), the share to keep, safe
    rows to mix in, forward passes a row, CPU seconds."""

    score: np.ndarray | None
    topp: float
    extra_safe: int = 0
    forward_equivalents: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class World:
    """A demo world, tokenised, and what tunes its model.

    Attributes:
        work: folder of the selectors, and of the passes that arms share.
        provenance: where each user row came from, which no method sees: str [N].
    """

    directory: Path
    work: Path
    tier: str
    poison: float
    seed: int
    safe: SFTDataset
    user: SFTDataset
    provenance: np.ndarray
    engines: Engines


def load_world(directory: Path, work: Path, tier: str, poison: float, seed: int) -> World:
    """Reads and tokenises a demo world."""
    strategy = DeepspeedStrategy(Zero(0), seed=seed)
    strategy.setup_distributed()
    model = str(directory / "model")
    tokenizer = get_tokenizer(model)

    def read(name):
        rows = load_rows(str(directory / f"{name}.jsonl"))
        return tokenize_rows(rows, tokenizer, max_len=MAX_LEN, apply_chat_template=True)

    safe, user, lines = read("safe"), read("user"), read_records(directory / "user.jsonl")
    provenance = np.array([lines[number]["provenance"] for number in user.row_numbers])
    engines = Engines(strategy, ModelSettings(pretrain=model), tokenizer, MICRO * MAX_LEN)
    return World(directory, work, tier, poison, seed, safe, user, provenance, engines)


def arm_flags(world: World, arm: str) -> str:
    """What makes an arm of METHODS; known-bad rows of a kind that was not planted are written."""
    other = world.work / "other_kind.jsonl"
    if "other_kind" in arm and not other.exists():
        tier = "plain" if world.tier == "implicit" else "implicit"
        rows = make_rows(Plan(tier=tier, seed=world.seed + AGAIN))["canaries"]
        other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return METHODS[arm].format(world=world.directory, work=world.work)


def run_script(world: World, arm: str, rows: Path | str | None = None) -> tuple[Selection, float]:
    """The selector of one arm of METHODS over the user's rows, or over others, and its CPU seconds.

    What the script prints is kept back. A selector that is there already is read.
    """
    words, loop = arm_flags(world, arm), METHODS[arm].startswith(LOOP)
    name = arm if rows is None else f"{arm}_of_{Path(str(rows)).stem}"
    path = world.work / f"{name}_softmax.parquet" if loop else world.work / f"{name}.parquet"
    cost = path.with_suffix(".seconds")  # a loop's artefact is the same byte for byte
    seed = world.seed + (AGAIN if arm == "random_again" else 0)
    words += (
        f" {COMMON} --seed {seed} --pretrain {world.directory / 'model'} --selector_name {name} "
        f"--dataset {world.directory / 'safe.jsonl'} --selector_save_dir {world.work} "
        f"--new_dataset {rows or world.directory / 'user.jsonl'}"
    )
    if not path.exists():
        with contextlib.redirect_stdout(io.StringIO()):
            if loop:
                words += f" --ckpt_path {world.work / name}"
                cpu = time.process_time()
                train(flags.selector_parser().parse_args(shlex.split(words)))
                cost.write_text(f"{time.process_time() - cpu:.1f}")
            else:
                own = rows is not None or "canary" in words
                words += f" --work_dir {world.work / (name if own else 'shared')}_parts"
                score(flags.score_parser().parse_args(shlex.split(words)))
    found = read_selection(path)
    return found, float(cost.read_text()) if loop else found.meta["cpu_seconds"]


def select(world: World, arm: str, topp: float) -> Choice:
    """Scores the user's rows; an arm that finds its own threshold ignores `topp`."""
    extra = SAFEINSTR.get(arm, 0)
    if arm == "all" or arm.startswith("safeinstr"):
        return Choice(None, 1.0, extra)
    if arm == "oracle":
        return Choice((world.provenance != "unsafe") + 0.0, topp)
    method = arm.removesuffix("_safeinstr_100").removesuffix("_logit")
    found, seconds = run_script(world, method)
    found_score = found.logit if arm.endswith("_logit") else found.score
    if arm == "relative_excess_auto":
        # none of 60 canaries kept bounds what is kept of their kind by 5 %, none of 300 by 1 %
        topp = auto_topp(found, 3 / found.meta["calibration"]["n"], CONFIDENCE)
    forwards = found.meta["forward_equivalents"]
    return Choice(found_score.astype(float), topp, extra, forwards, seconds)
