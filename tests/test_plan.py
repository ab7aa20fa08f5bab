"""`seal plan`: sizes are the model's own, tokens are those of the run, speed is measured once."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from tiny_world import make_model, make_rows, make_tokenizer, write_rows

from seal.command import main
from seal.command.speed import Speed, measured_speed
from seal.datasets import load_rows, tokenize_rows
from seal.models.actor import ModelSettings, load_actor

SAFE, USER = 12, 30


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A model of 4 layers, safe.jsonl and user.jsonl."""
    folder = tmp_path_factory.mktemp("plan")
    make_model(folder / "model", num_hidden_layers=4)
    write_rows(folder / "safe.jsonl", make_rows(SAFE, seed=1))
    write_rows(folder / "user.jsonl", make_rows(USER))
    return folder


def plan(world: Path, script: str, flags: str = "", options: str = "", status: int = 0) -> dict:
    inputs = f"--pretrain {world}/model --max_len 96 --micro_train_batch_size 2"
    names = f"--dataset {world}/user.jsonl"
    if script != "train_sft.py":
        names = f"--dataset {world}/safe.jsonl --new_dataset {world}/user.jsonl"
    words = f"plan --json {options} {script} {inputs} --train_batch_size 8 {names} {flags}".split()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(words) == status, err.getvalue()
    return json.loads(out.getvalue()) if status < 2 else {"error": err.getvalue()}


def tokens(world: Path, name: str) -> int:
    rows = tokenize_rows(load_rows(str(world / name)), make_tokenizer(), max_len=96)
    return int(rows.lengths.sum())


GIVEN = "--ranks 1 --tokens_per_s 1000"


@pytest.mark.parametrize("flags", ["", "--lora_rank 4 --target_modules q_proj v_proj", "--bf16"])
def test_sizes_are_those_of_the_model(world, flags):
    found = plan(world, "train_sft.py", flags, GIVEN)["model"]
    lora = {"lora_rank": 4, "target_modules": ["q_proj", "v_proj"]} if "lora" in flags else {}
    parameters = list(load_actor(ModelSettings(str(world / "model"), **lora)).parameters())
    assert found["parameters"] == sum(p.numel() for p in parameters)
    assert found["trainable"] == sum(p.numel() for p in parameters if p.requires_grad)
    assert found["layers"] == 4


def test_fine_tuning_costs_the_kept_rows(world):
    whole = plan(world, "train_sft.py", "--max_epochs 3", GIVEN)
    assert len(whole["phases"]) == 3 and whole["seconds"] == pytest.approx(
        3 * tokens(world, "user.jsonl") / 1000
    )
    cut = plan(world, "train_sft.py", "--max_epochs 3 --selector_path S --topp 0.5", GIVEN)
    assert cut["seconds"] == pytest.approx(whole["seconds"] / 2)
    halved = plan(world, "train_sft.py", "--max_epochs 3", "--ranks 2 --tokens_per_s 1000")
    assert halved["seconds"] == pytest.approx(whole["seconds"] / 2)


def test_selector_training_costs_what_its_estimator_passes(world):
    """Epoch 1 of the published weights reads the user's rows, the later ones learn from them."""
    flags = "--max_epochs 2 --upperlevel_weight 1.0 --upperlevel_weight_decay 0.1"
    user = tokens(world, "user.jsonl")
    safe = 32 * tokens(world, "safe.jsonl") / SAFE  # 4 steps of 8
    first, second = plan(world, "train_sft_selector.py", flags, GIVEN)["phases"]
    assert (first["learned"], first["read"]) == (pytest.approx(safe), pytest.approx(user))
    assert (second["learned"], second["read"]) == (pytest.approx(safe + user), 0)
    flags += " --selector_estimator penalty_gap"
    first, second, last = plan(world, "train_sft_selector.py", flags, GIVEN)["phases"]
    assert first["learned"] == pytest.approx(safe + user)
    assert second["learned"] == pytest.approx(safe + 2 * user)
    assert (last["learned"], last["read"]) == (0, pytest.approx(2 * user))


def test_scoring_costs_what_its_method_tunes_and_reads(world):
    user, safe = tokens(world, "user.jsonl"), tokens(world, "safe.jsonl")
    (reading,) = plan(world, "score_dataset.py", "--method perplexity", GIVEN)["phases"]
    assert (reading["learned"], reading["read"]) == (0, pytest.approx(user))
    tuning, reading = plan(world, "score_dataset.py", "--method excess_loss", GIVEN)["phases"]
    assert tuning["learned"] == pytest.approx(safe + user)
    assert reading["read"] == pytest.approx(2 * user)
    assert plan(world, "score_dataset.py", "--method random", GIVEN)["phases"] == []


def test_speed_is_measured_once_and_grows_with_layers(world, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    rows = tokenize_rows(load_rows(str(world / "user.jsonl")), make_tokenizer(), max_len=96)
    settings = ModelSettings(str(world / "model"))

    def measured(layers: int, refresh: bool = False) -> Speed:
        return measured_speed(settings, layers, rows, tokens=500, refresh=refresh)

    four = measured(4)
    assert four.learn > four.read > 0 and four.step > 0
    assert four == measured(4)
    assert len(list(tmp_path.rglob("speed-*.json"))) == 1
    # what is kept for backward is counted, not timed: it is on the line through one and two layers
    assert measured(8).kept - four.kept == pytest.approx(4 * four.kept_by_layer)
    hidden_state = torch.float32.itemsize * load_actor(settings).model.config.hidden_size
    assert four.kept_by_layer > 5 * hidden_state
    measured(4, refresh=True)
    assert len(list(tmp_path.rglob("speed-*.json"))) == 2


def test_memory_falls_with_zero_and_checkpointing(world):
    parts = [
        plan(world, "train_sft.py", f"--zero_stage {stage}", "--ranks 4 --tokens_per_s 9")
        for stage in (0, 1, 2, 3)
    ]
    memory = [found["memory_bytes"] for found in parts]
    size = parts[0]["model"]["parameters"]
    assert memory[0]["weights"] == memory[0]["gradients"] == 4 * size
    assert memory[0]["optimizer"] == 8 * size  # plain float32: the moments alone
    assert memory[1]["optimizer"] == memory[3]["optimizer"] == 12 * size / 4
    assert memory[1]["gradients"] == 4 * memory[2]["gradients"]
    assert memory[2]["weights"] == 4 * memory[3]["weights"]
    full, recomputed = (
        plan(world, "train_sft.py", flags, "--ranks 1")["memory_bytes"]["activations"]
        for flags in ("", "--gradient_checkpointing")
    )
    assert 0 < recomputed < full


def test_what_does_not_fit_is_exit_status_1(world):
    flags = "--save_path X --save_steps 1 --max_ckpt_num 1000000000"
    found = plan(world, "train_sft.py", flags, GIVEN, status=1)
    assert found["disk_bytes"]["checkpoints"] > found["disk_bytes"]["free"]


def test_bad_input_is_one_line(world):
    for script, flags, complaint in (
        ("train_sfx.py", "", "script train_sfx.py: known are train_sft_selector.py"),
        ("train_sft.py", "--train_batch_size 7", "--train_batch_size 7 does not divide"),
        ("train_sft.py", f"--pretrain {world}", "has no configuration"),
        ("score_dataset.py", "--method magic", "--method magic: known are"),
    ):
        error = plan(world, script, flags, GIVEN, status=2)["error"]
        assert error.startswith("error: ") and complaint in error and error.count("\n") == 1, error
