"""The benchmark's scores are those of the scripts, though its arms share their passes."""

import sys

import numpy as np
import pytest
from launch import ROOT, python

sys.path.append(str(ROOT / "benchmarks"))
import selection_methods as benchmark

from seal.cli import flags
from seal.cli.score_dataset import score
from seal.demo import Plan, build
from seal.selection.artefact import read_selection
from seal.trainer.scorers import METHODS

pytestmark = pytest.mark.slow
PLAN = Plan(rows=60, safe_rows=60, aligned_rows=120, epochs=1, eval_rows=10, canary_rows=30)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    build(PLAN, folder / "world")
    return benchmark.load_world(folder / "world", folder / "arms", "plain", 0.2, seed=0)


def words(world, out, method: str) -> list[str]:
    folder = world.directory
    return (
        f"{benchmark.arm_flags(world, method)} {benchmark.COMMON} --seed 0 "
        f"--pretrain {folder / 'model'} --dataset {folder / 'safe.jsonl'} "
        f"--new_dataset {folder / 'user.jsonl'} "
        f"--selector_save_dir {out} --selector_name {method}"
    ).split()


@pytest.mark.parametrize("method", sorted(METHODS.keys() & benchmark.METHODS.keys()))
def test_an_arm_scores_as_its_method_alone(world, tmp_path, method):
    alone = read_selection(score(flags.score_parser().parse_args(words(world, tmp_path, method))))
    chosen = benchmark.select(world, method, 0.7)
    np.testing.assert_array_equal(chosen.score, alone.score)
    assert chosen.forward_equivalents == alone.meta["forward_equivalents"]
    assert alone.meta["evidence"]["moved"].keys() == {
        "safe_loss": {"safe"},
        "excess_loss": {"safe", "rows"},
        "relative_excess": {"safe", "fold0", "fold1"},
        "influence": {"drifted"},
    }.get(method, set())


@pytest.mark.parametrize(
    "method, script",
    [("relative_excess", "score_dataset.py"), ("penalty_gap", "train_sft_selector.py")],
)
def test_an_arm_scores_as_the_script_that_a_user_starts(world, tmp_path, method, script):
    own = ["--ckpt_path", tmp_path / "own"] if "train" in script else []
    done = python(ROOT / "examples" / script, *words(world, tmp_path, method), *own)
    assert done.status == 0, done.output[-2000:]
    (path,) = tmp_path.glob("*softmax.parquet" if "train" in script else "*.parquet")
    np.testing.assert_array_equal(
        benchmark.select(world, method, 0.7).score, read_selection(path).score
    )
