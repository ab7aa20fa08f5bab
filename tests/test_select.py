"""`seal.select`: a selection as an operation on `datasets`, and TRL's trainer on its result."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from launch import ROOT, python
from tiny_world import make_model, make_rows, write_rows
from transformers import AutoModelForCausalLM

import seal
from seal.datasets import load_rows
from seal.errors import InputError
from seal.selection.artefact import kept_mask, read_selection, selection_meta, write_selection

ROWS = [*make_rows(40), *make_rows(3)]  # the last three are copies of the first


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """user.jsonl and mine.parquet, a selector with random scores for its rows."""
    folder = tmp_path_factory.mktemp("select")
    rows = load_rows(str(write_rows(folder / "user.jsonl", ROWS)))
    columns = {name: rows[name][:] for name in ("id", "occurrence", "row")}
    columns["score"] = np.random.default_rng(0).standard_normal(len(rows))
    meta = selection_meta(method="random", fingerprint=rows._fingerprint, raw=len(rows))
    write_selection(folder / "mine.parquet", columns, meta)
    return folder


def kept(home: Path, topp: float = 0.5) -> list[dict]:
    mask = kept_mask(read_selection(home / "mine.parquet").score, topp)
    return [row for row, keep in zip(ROWS, mask, strict=True) if keep]


def test_keeps_rows_as_they_are_in_their_order(home):
    rows = datasets.Dataset.from_list(ROWS)
    assert seal.select(rows, home / "mine.parquet", 0.5).to_list() == kept(home)
    assert seal.select(rows, home / "mine.parquet", 1).to_list() == ROWS


def test_a_shuffled_dataset_gives_the_same_rows(home):
    order = [int(i) for i in np.random.default_rng(1).permutation(40)]  # one copy of each
    rows = datasets.Dataset.from_list(ROWS).select(order)
    chosen = seal.select(rows, home / "mine.parquet", 0.5).to_list()
    first = {json.dumps(ROWS[i]) for i in np.flatnonzero(kept_mask_of(home)) if i < 40}
    assert chosen == [ROWS[i] for i in order if json.dumps(ROWS[i]) in first]


def kept_mask_of(home: Path) -> np.ndarray:
    return kept_mask(read_selection(home / "mine.parquet").score, 0.5)


@pytest.mark.parametrize(
    "schema",
    [
        lambda row: {"instruction": row["prompt"], "input": "", "output": row["response"]},
        lambda row: {"q": row["prompt"], "a": row["response"]},
        lambda row: {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["response"]},
            ]
        },
    ],
    ids=["alpaca", "own names", "messages"],
)
def test_other_schemas_select_the_same_rows(home, schema):
    rows = datasets.Dataset.from_list([schema(row) for row in ROWS])
    names = {"input_key": "q", "output_key": "a"} if "q" in rows.column_names else {}
    chosen = seal.select(rows, home / "mine.parquet", 0.5, **names)
    assert chosen.to_list() == [schema(row) for row in kept(home)]


def test_rows_without_a_score(home):
    rows = datasets.Dataset.from_list([*make_rows(1, seed=9), *ROWS])
    with pytest.raises(InputError, match="1 of 44 dataset rows have no score"):
        seal.select(rows, home / "mine.parquet", 0.5)
    dropped = seal.select(rows, home / "mine.parquet", 0.5, unscored="drop").to_list()
    added = seal.select(rows, home / "mine.parquet", 0.5, unscored="keep").to_list()
    assert dropped == kept(home) and added == [rows[0], *dropped]


def test_what_is_not_one_dataset_is_refused(home):
    several = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))
    with pytest.raises(InputError, match=r"got a DatasetDict; of several splits give one"):
        seal.select(several, home / "mine.parquet", 0.5)
    with pytest.raises(InputError, match="fit no known schema"):
        seal.select(datasets.Dataset.from_list([{"x": 1}]), home / "mine.parquet", 0.5)


def test_import_seal_loads_nothing():
    code = "import sys, seal; print(sorted({'datasets', 'numpy', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="needs TRL: pip install -e .[trl]"
)
@pytest.mark.slow
def test_trl_trains_on_the_selection(home, tmp_path):
    model = make_model(tmp_path / "model")
    words = ["--pretrain", model, "--dataset", home / "user.jsonl"]
    words += ["--selector_path", home / "mine.parquet", "--topp", "0.5"]
    words += ["--save_path", tmp_path / "out", "--learning_rate", "1e-3"]
    done = python(ROOT / "examples/trl_on_selection.py", *words)
    assert done.status == 0, done.output[-2000:]
    assert f"kept {len(kept(home))} of 43 rows at topp 0.5" in done.output
    before, after = map(AutoModelForCausalLM.from_pretrained, (model, tmp_path / "out"))
    moved = [(a != b).any() for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert all(moved)
