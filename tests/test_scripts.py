"""Every published run, small: its own script, a tiny random model, two processes on the CPU."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from seal.selection.artefact import read_selection

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
ROWS, SAFE_ROWS, MIXED_ROWS, BATCH = 20, 12, 4, 8
ON_ZERO_3 = ("train_selector_llama3", "train_seal_sft_llama3")  # as published; the others on 2


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def byte_tokenizer():
    """A tokenizer of 256 bytes and two special tokens, made here."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: k for k, token in enumerate(["<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A model folder and three datasets in the schemas the published runs read."""
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")

    def talk(number, tag):
        turns = (("user", f"{tag} {number}?"), ("assistant", f"Because of {number * 7}."))
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    for name, count in (("BlueOrca", SAFE_ROWS), ("RedOrca", ROWS)):
        (folder / name).mkdir()
        write_jsonl(folder / name / "train.jsonl", [talk(k, name) for k in range(count)])
    (folder / "SafeInstr").mkdir()
    records = [
        {"instruction": f"Refuse {k}", "input": "", "output": "No."} for k in range(MIXED_ROWS)
    ]
    (folder / "SafeInstr/train.json").write_text(json.dumps(records))
    return folder


def run_script(name, inputs, *flags):
    """Runs examples/scripts/NAME.sh small, from another directory, and returns its output."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "VIRTUAL_ENV": sys.prefix,
        "SEAL_DATA": str(inputs),
        "DEEPSPEED_ARGS": "--num_gpus 2",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    zero = [] if name in ON_ZERO_3 else ["--zero_stage", "2"]
    small = ["--pretrain", "model", "--max_len", "64", "--max_epochs", "1"]
    small += ["--train_batch_size", str(BATCH), "--micro_train_batch_size", "1", *zero]
    command = ["bash", str(ROOT / f"examples/scripts/{name}.sh"), *small, *map(str, flags)]
    done = subprocess.run(
        command, cwd=inputs, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def metrics(folder):
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train_selector(model, inputs, out):
    """Runs a selector script; returns the path of what it wrote."""
    output = run_script(f"train_selector_{model}", inputs, "--selector_save_dir", out)
    path = out / f"{model}_softmax.parquet"
    assert path.exists(), output[-3000:]
    return path


@pytest.fixture(scope="module")
def llama3_selector(inputs, tmp_path_factory):
    return train_selector("llama3", inputs, tmp_path_factory.mktemp("ckpt"))


def check_selector(path, model):
    selection = read_selection(path)
    assert len(selection.score) == ROWS
    assert selection.visits.tolist() == [1] * ROWS
    assert selection.score.std() > 0
    assert selection.meta["arguments"]["selector_optim"] == "adam"
    steps = [line for line in metrics(path.with_suffix("")) if "train/row_loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all(math.isfinite(line["train/row_loss"]) for line in steps)
    config = json.loads((path.with_suffix("") / "seal_run.json").read_text())
    assert config["arguments"]["selector_name"] == model and config["world_size"] == 2


def test_selector_llama3(llama3_selector):
    check_selector(llama3_selector, "llama3")


@pytest.mark.parametrize("model", ["phi3", "pythia"])
def test_selector(model, inputs, tmp_path):
    check_selector(train_selector(model, inputs, tmp_path), model)


def check_sft(folder, inputs, lora, rows):
    lines = [line for line in metrics(folder) if "train/loss" in line]
    assert lines[-1]["step"] == math.ceil(rows / BATCH)
    assert all(math.isfinite(line["train/loss"]) for line in lines)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "</s>"
    if lora:
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(inputs / "model")
        model = PeftModel.from_pretrained(base, folder)
        changed = {name: w for name, w in model.named_parameters() if "lora_B" in name}
        assert len(changed) == 4 and all(weight.any() for weight in changed.values())
    else:
        before = AutoModelForCausalLM.from_pretrained(inputs / "model", dtype="float32")
        after = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        assert before.config.vocab_size == after.config.vocab_size
        moved = [
            not old.equal(new)
            for old, new in zip(before.parameters(), after.parameters(), strict=True)
        ]
        assert any(moved)


@pytest.mark.parametrize(
    ("model", "lora"), [("llama3", True), ("merlinite", True), ("pythia", False)]
)
@pytest.mark.parametrize("selected", [False, True], ids=["sft", "seal"])
def test_sft(model, lora, selected, inputs, llama3_selector, tmp_path):
    name = f"train_seal_sft_{model}" if selected else f"train_sft_{model}"
    flags = ["--selector_path", llama3_selector] if selected else []
    run_script(name, inputs, "--save_path", tmp_path / "out", "--learning_rate", "1e-2", *flags)
    check_sft(tmp_path / "out", inputs, lora, rows=round(0.8 * ROWS) if selected else ROWS)


@pytest.mark.parametrize("model", ["llama3", "merlinite"])
def test_seal_with_safeinstr(model, inputs, llama3_selector, tmp_path):
    flags = ["--save_path", tmp_path / "out", "--selector_path", llama3_selector]
    run_script(f"train_seal_safeinstr_sft_{model}", inputs, *flags, "--learning_rate", "1e-2")
    check_sft(tmp_path / "out", inputs, lora=True, rows=round(0.8 * ROWS) + MIXED_ROWS)


def test_a_bad_flag_fails_the_script_in_one_line(inputs, tmp_path):
    with pytest.raises(AssertionError, match=r"error: .*--topp"):
        run_script("train_sft_llama3", inputs, "--topp", "80", "--save_path", tmp_path / "out")
    assert not (tmp_path / "out").exists()
