"""Bad input: one line that names value, limit and remedy; status 2; nothing written; no hang.

The cases of CASES are called on two ranks of one launch (bad_input_driver.py): both ranks must end
with the same message. Hundreds more are generated (bad_inputs.py) and called in one process. A few
go through launches of their own, for the exit status and what is printed.
"""

import json
import os
import re
import shutil
from pathlib import Path

import bad_input_driver
import bad_inputs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from launch import SELECTOR, SFT, deepspeed, python
from test_saved_models import make_adapter
from tiny_world import make_model, make_rows, make_tokenizer, write_rows
from transformers import AutoConfig, AutoModelForCausalLM

from seal.datasets import load_rows
from seal.selection.artefact import read_selection, selection_meta, write_selection

pytestmark = pytest.mark.slow
RANKS = 2


class Code:
    """Unpickled, it would run a command."""

    def __reduce__(self):
        return print, ("code from a file has run",)


def write_selector(path: Path, data: Path, **meta) -> None:
    """An artefact that scores every row of `data`."""
    rows = load_rows(str(data))
    columns = {name: rows[name][:] for name in ("id", "occurrence", "row")}
    settings = dict(method="random", fingerprint="0", raw=len(rows))
    score = np.random.default_rng(0).random(len(rows))
    write_selection(path, columns | {"score": score}, selection_meta(**settings | meta))


def make_world(root: Path) -> Path:
    """Good and bad models, datasets and selectors."""
    model = make_model(root / "model")
    for broken in ("no-weights", "no-tokenizer", "no-template"):
        shutil.copytree(model, root / broken)
    (root / "no-weights/model.safetensors").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (root / "no-tokenizer" / name).unlink()
    (root / "no-template/chat_template.jinja").unlink()
    (root / "no-directory").touch()
    shutil.copytree(model, root / "cut")
    os.truncate(root / "cut/model.safetensors", 5000)
    for name in ("gguf", "empty"):
        (root / name).mkdir()
    (root / "gguf/m.gguf").write_bytes(b"GGUF")
    make_model(root / "bert", "bert")
    make_model(root / "short", max_position_embeddings=16)
    make_model(root / "small")
    AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(root / "small", vocab_size=100)
    ).save_pretrained(root / "small")
    make_adapter(str(model), root / "adapter")
    make_tokenizer().save_pretrained(root / "adapter")
    shutil.copytree(root / "adapter", root / "other-adapter")
    config = json.loads((root / "adapter/adapter_config.json").read_text()) | {"peft_type": "IA3"}
    (root / "other-adapter/adapter_config.json").write_text(json.dumps(config))

    rows = make_rows(12)
    user = write_rows(root / "user.jsonl", rows)
    write_rows(root / "safe.jsonl", make_rows(8, seed=1))
    write_rows(root / "some.jsonl", rows[:10])
    write_rows(root / "silent.jsonl", [{**row, "response": " "} for row in rows])
    write_rows(root / "strange.jsonl", [{"colour": "red", "size": 3}])
    lines = user.read_text().splitlines()
    (root / "broken.jsonl").write_text("\n".join([*lines[:6], '{"prompt": "half', *lines[6:]]))
    (root / "empty.jsonl").touch()
    (root / "not.parquet").write_bytes(b"PAR1 this is not a table")

    write_selector(root / "good.parquet", user)
    write_selector(root / "other.parquet", root / "safe.jsonl")
    write_selector(root / "partial.parquet", root / "some.jsonl")
    pq.write_table(pa.table({"id": ["a"], "score": [1.0]}), root / "foreign.parquet")
    torch.save(torch.zeros(9), root / "nine.pt")
    torch.save({"logits": torch.zeros(12)}, root / "dict.pt")
    torch.save(Code(), root / "code.pt")
    (root / "text.pt").write_text("logits")
    return root


# name -> (script, flags beyond a good run's, words the message must hold)
SELECT = "--topp 0.5 --selector_path {root}/"
CASES = {
    "topp-80": ("sft", "--topp 80", ["topp", "(0, 1]", "got 80"]),
    "topp-0": ("sft", "--topp 0", ["(0, 1]", "got 0"]),
    "topp-negative": ("sft", "--topp -0.5", ["(0, 1]"]),
    "topp-nan": ("sft", "--topp nan", ["(0, 1]"]),
    "topp-keeps-none": ("sft", "--topp 0.01 --selector_path {root}/good.parquet", ["keeps none"]),
    "topp-alone": ("sft", "--topp 0.5", ["--topp 0.5", "needs --selector_path"]),
    "topp-auto-alone": ("sft", "--topp auto", ["--topp auto", "needs --selector_path"]),
    "selector-alone": ("sft", "--selector_path {root}/good.parquet", ["needs --topp"]),
    "save-path-used": ("sft", "--save_path {root}/no-weights", ["no-weights", "--overwrite"]),
    "another-dataset": ("sft", SELECT + "other.parquet", ["none of the 12", "8 rows"]),
    "rows-unscored": ("sft", SELECT + "partial.parquet", ["2 of 12", "--unscored"]),
    "unscored-maybe": ("sft", SELECT + "good.parquet --unscored maybe", ["maybe", "keep"]),
    "selector-missing": ("sft", SELECT + "none.parquet", ["none.parquet", "no such file"]),
    "selector-unreadable": ("sft", SELECT + "not.parquet", ["not.parquet", "Parquet"]),
    "selector-foreign": ("sft", SELECT + "foreign.parquet", ["foreign.parquet"]),
    "selector-suffix": ("sft", SELECT + "user.jsonl", [".parquet", ".pt", "jsonl"]),
    "pt-count": ("sft", SELECT + "nine.pt", ["9 logits", "12 of 12"]),
    "pt-dict": ("sft", SELECT + "dict.pt", ["dict.pt", "tensor"]),
    "pt-code": ("sft", SELECT + "code.pt", ["code.pt", "refused"]),
    "pt-text": ("sft", SELECT + "text.pt", ["text.pt", "refused"]),
    "pt-missing": ("sft", SELECT + "none.pt", ["none.pt", "no such file"]),
    "data-missing": ("sft", "--dataset {root}/none.jsonl", ["none.jsonl", "not found"]),
    "data-unreadable": ("sft", "--dataset {root}/not.parquet", ["not.parquet", "cannot be read"]),
    "data-json": ("sft", "--dataset {root}/broken.jsonl", ["broken.jsonl", "line 7", "JSON"]),
    "data-empty": ("sft", "--dataset {root}/empty.jsonl", ["empty.jsonl", "no rows"]),
    "data-schema": ("sft", "--dataset {root}/strange.jsonl", ["colour", "size", "prompt"]),
    "column-missing": ("sft", "--input_key ask --output_key tell", ["ask", "prompt", "response"]),
    "all-skipped": ("sft", "--dataset {root}/silent.jsonl", ["12", "empty response"]),
    "max-len-small": ("sft", "--max_len 8", ["12 rows are skipped", "max_len 8"]),
    "max-len-2": ("sft", "--max_len 2", ["max_len", "got 2"]),
    "probabilities": ("sft", "--dataset_probs 0.5,0.6", ["0.5,0.6"]),
    "eval-all-trained": ("sft", "--eval_dataset {root}/user.jsonl", ["all 12", "trained on"]),
    "safe-missing": ("selector", "--dataset {root}/none.jsonl", ["none.jsonl", "not found"]),
    "new-missing": ("selector", "--new_dataset {root}/none.jsonl", ["none.jsonl", "not found"]),
    "new-json": ("selector", "--new_dataset {root}/broken.jsonl", ["line 7"]),
    "batch": ("selector", "--train_batch_size 6", ["6", "2 x 2 ranks", "4 does"]),
    "batch-sft": ("sft", "--train_batch_size 3", ["3", "2 x 2 ranks", "4 does"]),
    "batch-zero": ("sft", "--train_batch_size 0", ["train_batch_size", "at least 1"]),
    "micro-zero": ("sft", "--micro_train_batch_size 0", ["micro_train_batch_size", "at least 1"]),
    "epochs-zero": ("selector", "--max_epochs 0", ["max_epochs", "at least 1"]),
    "save-steps-zero": ("sft", "--save_steps 0", ["save_steps"]),
    "rate-negative": ("sft", "--learning_rate -1", ["learning_rate", "-1"]),
    "rate-nan": ("sft", "--learning_rate nan", ["learning_rate", "nan"]),
    "activation": ("selector", "--selector_activation relu", ["relu", "softmax", "sigmoid"]),
    "update": ("selector", "--selector_optim sgd", ["sgd", "mirror", "adam"]),
    "scheduler": ("sft", "--lr_scheduler zigzag", ["zigzag", "cosine"]),
    "scheduler-rows": ("selector", "--selector_lr_scheduler zigzag", ["zigzag", "constant"]),
    "upper-weight": ("selector", "--upperlevel_weight 1.5", ["upperlevel_weight", "(0, 1]", "1.5"]),
    "upper-zero": ("selector", "--upperlevel_weight 0", ["upperlevel_weight", "(0, 1]"]),
    "zero-5": ("selector", "--zero_stage 5", ["zero_stage", "0, 1, 2 or 3", "5"]),
    "accumulator": ("sft", "--grad_accum_dtype fp8", ["grad_accum_dtype", "fp8", "bf16"]),
    "liger": ("sft", "--use_liger_kernel", ["--use_liger_kernel", "CUDA", "drop it"]),
    "four-bit": ("sft", "--load_in_4bit --lora_rank 4", ["load_in_4bit", "bitsandbytes"]),
    "four-bit-zero-3": (
        "sft",
        "--load_in_4bit --lora_rank 4 --zero_stage 3",
        ["load_in_4bit", "--zero_stage 2"],
    ),
    "four-bit-full": ("sft", "--load_in_4bit", ["load_in_4bit"]),
    "modules": ("sft", "--lora_rank 4 --target_modules nose", ["target_modules", "nose"]),
    "rank-negative": ("sft", "--lora_rank -4", ["lora_rank", "-4"]),
    "dropout": ("sft", "--lora_rank 4 --lora_dropout 1.5", ["lora_dropout", "1.5"]),
    "attention": ("sft", "--attn_implementation fancy", ["fancy"]),
    "accumulator-alone": ("sft", "--grad_accum_dtype bf16", ["grad_accum_dtype", "--bf16"]),
    "no-experts": ("sft", "--aux_loss_coef 0.1", ["aux_loss_coef", "llama"]),
    "not-causal": ("sft", "--pretrain {root}/bert", ["bert", "architectures.md"]),
    "few-positions": ("sft", "--pretrain {root}/short", ["made for 16", "--max_len 16"]),
    "few-tokens": ("sft", "--pretrain {root}/small", ["token", "embedding ends at 99"]),
    "lora-rank": ("sft", "--pretrain {root}/adapter --lora_rank 8", ["--lora_rank 8", "with 4"]),
    "adapter-kind": ("sft", "--pretrain {root}/other-adapter", ["IA3", "LoRA"]),
    "over-the-base": (
        "sft",
        "--lora_rank 2 --target_modules q_proj --save_path {root}/model --overwrite",
        ["save_path", "base model"],
    ),
    "weights-missing": ("sft", "--pretrain {root}/no-weights", ["no-weights", "does not load"]),
    "model-missing": ("sft", "--pretrain {root}/nowhere", ["nowhere"]),
    "weights-cut": ("sft", "--pretrain {root}/cut", ["cut", "damaged", "copy it again"]),
    "model-gguf": ("sft", "--pretrain {root}/gguf", ["gguf", "llama.cpp", "safetensors"]),
    "model-gguf-file": ("selector", "--pretrain {root}/gguf/m.gguf", ["m.gguf", "llama.cpp"]),
    "model-file": ("sft", "--pretrain {root}/user.jsonl", ["user.jsonl", "is a file"]),
    "model-empty": ("sft", "--pretrain {root}/empty", ["empty", "no config.json"]),
    "model-misspelt": ("selector", "--pretrain {root}/modle", ["did you mean {root}/model?"]),
    "warmup": ("sft", "--lr_warmup_ratio 1", ["lr_warmup_ratio", "[0, 1)", "got 1"]),
    "tokenizer-missing": ("sft", "--pretrain {root}/no-tokenizer", ["no-tokenizer", "tokenizer"]),
    "template-missing": (
        "sft",
        "--pretrain {root}/no-template --apply_chat_template",
        ["no-template", "chat template"],
    ),
    "template-brace": ("sft", "--input_template Human:", ["Human:", "{{}}"]),
    "no-checkpoint": ("sft", "--load_checkpoint", ["load_checkpoint", "no complete checkpoint"]),
    "no-such-checkpoint": ("selector", "--load_checkpoint {root}/model", ["checkpoint"]),
    "best-of-nothing": ("sft", "--save_best", ["save_best", "eval_dataset"]),
    "timeout-zero": ("sft", "--timeout_minutes 0", ["timeout_minutes", "above 0"]),
    "save-path-file": ("sft", "--save_path {root}/no-directory/x", ["no-directory"]),
}
GOOD = {
    "sft": "--dataset {root}/user.jsonl --save_path out",
    "selector": "--dataset {root}/safe.jsonl --new_dataset {root}/user.jsonl --save_path out",
    "score": "--dataset {root}/safe.jsonl --new_dataset {root}/user.jsonl --method random",
}
EVERY = "--pretrain {root}/model --max_len 96 --train_batch_size 4 --micro_train_batch_size 2"


def words_of(script: str, flags: str, root: Path) -> list[str]:
    """The command line of a case; a later flag wins over an earlier one."""
    if script == "command":
        return flags.split()
    return f"{EVERY} {GOOD[script]} {flags}".format_map(_Root(root=root)).split()


class _Root(dict):
    """Leaves every {} but {root} as it is."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def outcomes(world, tmp_path_factory) -> dict[str, list[dict]]:
    """Name -> how the case ended on each rank."""
    out = tmp_path_factory.mktemp("outcomes")
    cases = [
        {"name": name, "script": script, "words": words_of(script, flags, world)}
        for name, (script, flags, _) in CASES.items()
    ]
    (out / "cases.json").write_text(json.dumps(cases))
    driver = Path(bad_input_driver.__file__)
    done = deepspeed(driver, out / "cases.json", out, ranks=RANKS, seconds=600)
    assert done.status == 0, done.output[-5000:]
    assert "code from a file has run" not in done.output
    return {
        name: [json.loads((out / f"{name}.{rank}.json").read_text()) for rank in range(RANKS)]
        for name in CASES
    }


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_on_every_rank_and_writes_nothing(world, outcomes, name):
    for found in outcomes[name]:
        assert found["type"] == "InputError", found
        assert "\n" not in found["message"].strip() and len(found["message"]) < 700
        for word in CASES[name][2]:
            assert word.format_map(_Root(root=world)) in found["message"]
        assert found["written"] == []
    assert len({found["message"] for found in outcomes[name]}) == 1


def test_hundreds_of_generated_bad_inputs_are_one_line_each_and_write_nothing(world, tmp_path):
    cases = [
        {"name": name, "script": script, "words": words_of(script, flags, world)}
        for name, script, flags in bad_inputs.make_cases(world)
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = python(Path(bad_input_driver.__file__), tmp_path / "cases.json", tmp_path, seconds=300)
    assert done.status == 0, done.output[-5000:]
    wrong = []
    for case in cases:
        found = json.loads((tmp_path / f"{case['name']}.0.json").read_text())
        message = found["message"].strip()
        one_line = found["type"] == "InputError" and "\n" not in message and len(message) < 700
        _, _, flag = case["name"].partition("flag-")
        named = flag.split("-")[0] in message
        if not (one_line and named) or found["written"]:
            wrong.append((case["name"], found))
    assert not wrong and len(cases) >= 300, wrong


def refused(done, folder: Path, *words: str) -> None:
    """Status 2, one error line with `words`, no traceback, an empty folder."""
    assert done.status == 2, done.output
    assert len(done.errors) == 1, done.output
    assert "Traceback" not in done.output
    assert all(word in done.errors[0] for word in words)
    assert list(folder.rglob("*")) == []


LAUNCHED = {
    "new-json": SELECTOR,  # read by rank 0 first
    "weights-missing": SFT,
}


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_launcher_shows_one_line_and_ends_with_2(world, tmp_path, name):
    script, flags, words = CASES[name]
    done = deepspeed(LAUNCHED[name], *words_of(script, flags, world), cwd=tmp_path)
    refused(done, tmp_path, *words)


LATE = """
import os, runpy, sys, time
if os.environ["RANK"] == "0":
    time.sleep(5)
_, local_rank, script, *words = sys.argv
sys.argv = [script, local_rank, *words]
runpy.run_path(script, run_name="__main__")
"""


def test_the_line_appears_though_rank_0_comes_late(world, tmp_path):
    """The launcher ends all ranks when the first one leaves."""
    late, folder = tmp_path / "late.py", tmp_path / "folder"
    late.write_text(LATE)
    folder.mkdir()
    done = deepspeed(late, SFT, *words_of("sft", "--max_len many", world), cwd=folder)
    refused(done, folder, "max_len")


def test_alone_too(world, tmp_path):
    done = python(SFT, *words_of("sft", "--topp 80", world), cwd=tmp_path)
    refused(done, tmp_path, "got 80")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_artefact(world, tmp_path):
    """One step an epoch; the rate of the first one throws the weights far off."""
    flags = "--train_batch_size 12 --learning_rate 1e30 --lr_scheduler constant --max_epochs 3"
    done = deepspeed(SELECTOR, *words_of("selector", flags, world), cwd=tmp_path)
    assert done.status == 2 and len(done.errors) == 1, done.output
    assert "Traceback" not in done.output
    assert "step 2" in done.errors[0] and "rows" in done.errors[0]
    kept = sorted(path.name for path in (tmp_path / "ckpt").glob("*.parquet"))
    assert kept == ["sft_selection_logits_softmax_ep1.parquet"]
    selection = read_selection(tmp_path / "ckpt" / kept[0])
    assert len(selection) == 12 and (selection.visits == 1).all()
    assert re.search(r"first ids: [0-9a-f]{32}", done.errors[0])
    assert not (tmp_path / "out").exists()


def test_a_model_of_nans_is_refused_before_the_first_step(world, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(world / "model")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(world / "nans")
    shutil.copy(world / "model/tokenizer.json", world / "nans")
    shutil.copy(world / "model/tokenizer_config.json", world / "nans")
    words = words_of("sft", "--pretrain {root}/nans", world)
    done = python(SFT, *words, cwd=tmp_path)
    assert done.status == 2 and len(done.errors) == 1, done.output
    assert "not finite before any step" in done.errors[0] and "Traceback" not in done.output
    assert not list(tmp_path.rglob("*.safetensors"))
