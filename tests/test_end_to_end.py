"""Both stages through the real entry scripts: every architecture, every output, killed runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from launch import SELECTOR, SFT, deepspeed, kill_once, launched, python
from launch import run as run_words
from loaders import answer_of
from peft import PeftModel
from safetensors.torch import load_file
from tiny_world import make_model, make_rows, make_tokenizer, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

import seal
from seal import command
from seal.cli import flags as cli
from seal.cli import train_sft
from seal.datasets import load_rows, tokenize_rows
from seal.ids import id_text
from seal.provenance import sha256_of_file
from seal.selection.artefact import read_selection

pytestmark = pytest.mark.slow
KEY = "0123456789abcdef" * 2 + "deadbeef"  # shaped as a wandb key
TOKENS = {
    name: f"planted-{name}" for name in ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY")
}
SPEED = "train/tokens_per_second train/tflops train/peak_gib".split()  # differ between equal runs
USER_ROWS, TOPP = 20, 0.7
LORA = "--lora_rank 4 --target_modules q_proj v_proj"
# architecture -> (launcher, flags)
RUNS = {
    "llama": (deepspeed, f"--zero_stage 3 {LORA}"),
    "mistral": (deepspeed, "--zero_stage 2 --bf16 --use_tensorboard"),
    "phi3": (python, "--zero_stage 1 --gradient_checkpointing --flash_attn"),
    "gpt_neox": (python, "--zero_stage 0 --max_norm 0 --lr_scheduler constant"),
    "qwen3": (python, "--zero_stage 3 --bf16 --lora_rank 2 --apply_chat_template"),
}
COMMON = (
    "--max_len 96 --train_batch_size 8 --micro_train_batch_size 2 --learning_rate 1e-3 "
    "--max_epochs 2"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Folder with safe.jsonl, user.jsonl and a dataset cache of its own."""
    root = tmp_path_factory.mktemp("data")
    write_rows(root / "safe.jsonl", make_rows(6, seed=1))
    write_rows(root / "user.jsonl", make_rows(USER_ROWS))
    write_rows(root / "eval.jsonl", make_rows(4, seed=2) + make_rows(3))
    lock = root / "operators/deepspeed_shm_comm/lock"  # as a killed compilation leaves it
    lock.parent.mkdir(parents=True)
    lock.touch()
    return root


def environment(data: Path) -> dict[str, str]:
    return {
        "HF_DATASETS_CACHE": str(data / "cache"),
        "TORCH_EXTENSIONS_DIR": str(data / "operators"),
        "WANDB_MODE": "offline",
    }


def stage_1(data: Path, flags: str) -> list[str]:
    """Words of the selector's command line; outputs are relative."""
    inputs = f"--dataset {data}/safe.jsonl --new_dataset {data}/user.jsonl"
    return f"{COMMON} {inputs} {flags}".split()


def stage_2(data: Path, flags: str) -> list[str]:
    """Words of the fine-tuning's command line; outputs are relative."""
    selector = f"--selector_path ckpt/sft_selection_logits_softmax.parquet --topp {TOPP}"
    inputs = f"--dataset {data}/user.jsonl --eval_dataset {data}/eval.jsonl"
    return f"{COMMON} {inputs} {selector} --save_path tuned {flags}".split()


@pytest.fixture(scope="module", params=RUNS)
def trained(request, data, tmp_path_factory):
    """(architecture, folder of both stages' outputs, console of each)."""
    launcher, flags = RUNS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    make_model(folder / "start", request.param)
    flags = f"--pretrain start {flags}"
    options = {"cwd": folder, "env": environment(data)}
    first = launcher(SELECTOR, *stage_1(data, flags), **options)
    assert first.status == 0, first.output[-5000:]
    second = launcher(SFT, *stage_2(data, flags), **options)
    assert second.status == 0, second.output[-5000:]
    return request.param, folder, first.output, second.output


def metrics(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_selector_is_whole(trained):
    architecture, folder, _, _ = trained
    selection = read_selection(folder / "ckpt/sft_selection_logits_softmax.parquet")
    assert len(selection) == USER_ROWS and (selection.visits == 2).all()
    assert np.isfinite(selection.loss).all() and len(set(selection.score)) > USER_ROWS // 2
    assert selection.meta["model"] == "start" and selection.meta["max_len"] == 96
    moved = selection.meta["evidence"]["moved"]["loop"]
    assert selection.meta["evidence"]["steps"] == {"loop": 2 * -(-USER_ROWS // 8)}
    assert moved.keys() == {"safe", "rows", "swapped"} and moved["safe"][1] < moved["safe"][0]
    for epoch in (1, 2):
        at = read_selection(folder / f"ckpt/sft_selection_logits_softmax_ep{epoch}.parquet")
        assert (at.visits == epoch).all(), architecture
    assert (at.score == selection.score).all()


def test_run_directories_hold_metrics_and_configuration(trained):
    _, folder, _, _ = trained
    steps = -(-USER_ROWS // 8) * 2
    selector = folder / "ckpt/sft_selection_logits_softmax"
    lines = metrics(selector / "metrics.jsonl")
    trained_steps = [line["step"] for line in lines if "train/row_loss" in line]
    assert trained_steps == list(range(1, steps + 1))
    assert sum("selector/churn" in line for line in lines) == 2
    assert all(set(SPEED) <= set(line) for line in lines if "train/row_loss" in line)
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    run = json.loads((selector / "seal_run.json").read_text())
    assert run["arguments"]["train_batch_size"] == 8
    assert run["command"].startswith("train_sft_selector.py ")

    lines = metrics(folder / "tuned/metrics.jsonl")
    steps = -(-round(TOPP * USER_ROWS) // 8) * 2
    assert [m["step"] for m in lines if "train/loss" in m] == list(range(1, steps + 1))
    assert [m["step"] for m in lines if "eval/loss" in m] == [steps // 2, steps]
    run = json.loads((folder / "tuned/seal_run.json").read_text())
    assert run["arguments"]["topp"] == run["selection"]["topp"] == TOPP
    assert run["selection"]["sha256"] == sha256_of_file(selector.with_suffix(".parquet"))


def test_console_says_what_happened_once(trained):
    architecture, _, first, second = trained
    kept = f"{round(TOPP * USER_ROWS)} of {USER_ROWS} rows kept at topp {TOPP}"
    assert second.count(kept) == 1
    assert first.count("selector: ckpt/") == 1 and second.count("model: tuned") == 1
    assert first.count("rows packed, ") == second.count("rows packed, ") == 1
    if architecture == "phi3":
        assert "flash-attn is not used" in first
    for console in (first, second):
        for noise in ("Traceback", "Warning", "Error", "built successfully"):
            assert noise not in console, console


def test_saved_model_loads_and_generates(trained, monkeypatch):
    _, folder, _, _ = trained
    tuned = folder / "tuned"
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    assert tokenizer.chat_template == make_tokenizer().chat_template
    assert list(tuned.glob("*.safetensors")) and not list(tuned.glob("*.bin"))
    if (tuned / "adapter_config.json").exists():
        start = AutoModelForCausalLM.from_pretrained(folder / "start")
        adapted = PeftModel.from_pretrained(start, tuned)
        changed = [p for n, p in adapted.named_parameters() if "lora_B" in n]
        assert changed and all(p.abs().max() > 0 for p in changed)
    else:
        model = AutoModelForCausalLM.from_pretrained(tuned)
        start = AutoModelForCausalLM.from_pretrained(folder / "start").state_dict()
        assert model.state_dict().keys() == start.keys()
        same = [n for n, t in model.state_dict().items() if torch.equal(t, start[n])]
        assert not [n for n in same if start[n].dim() > 1]  # in bf16 a norm near 1 may stay
    monkeypatch.chdir(folder)  # an adapter names its base as it was given
    answer_of(Path("tuned"))
    if (tuned / "adapter_config.json").exists():
        assert command.main(["merge", "tuned", "--out", "merged"]) == 0
        answer_of(Path("merged"))


def test_the_model_card_names_what_the_model_comes_from(trained, data):
    architecture, folder, _, _ = trained
    card = (folder / "tuned/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    adapter = "--lora_rank" in RUNS[architecture][1]
    assert front["library_name"] == ("peft" if adapter else "transformers")
    assert front["base_model"] == "start"
    selector = folder / "ckpt/sft_selection_logits_softmax.parquet"
    said = dict(re.findall(r"^\| (.+?) \| `?(.*?)`? \|$", card, flags=re.M))
    assert said["selector"] == selector.name and said["sha256"] == sha256_of_file(selector)
    assert (said["topp"], said["kept"]) == (f"{TOPP:g}", str(round(TOPP * USER_ROWS)))
    assert said["dataset scored"] == read_selection(selector).meta["dataset"]["fingerprint"]
    last = metrics(folder / "tuned/metrics.jsonl")[-1]
    assert float(said["eval/loss"]) == pytest.approx(last["eval/loss"], rel=1e-5)
    assert said["train_batch_size"] == "8" and said["seal"] == seal.__version__
    assert not [row for row in make_rows(USER_ROWS) if row["response"] in card]


def test_no_operator_is_compiled(trained, data):
    """Nor is the lock waited for that a killed compilation left."""
    assert [path.name for path in (data / "operators").rglob("*")] == ["deepspeed_shm_comm", "lock"]


def test_tensorboard_writes_when_asked(trained):
    architecture, folder, _, _ = trained
    events = list((folder / "tuned").rglob("events.out.tfevents*"))
    assert bool(events) == ("--use_tensorboard" in RUNS[architecture][1])


@pytest.mark.parametrize("form", ["--use_wandb {}", "--use_wandb={}"])
def test_a_wandb_key_is_written_nowhere(data, tmp_path, form):
    pytest.importorskip("wandb")
    make_model(tmp_path / "start")
    flags = f"--pretrain start --save_path tuned --save_steps 2 {form.format(KEY)}"
    words = f"{COMMON} --dataset {data}/user.jsonl {flags}".split()
    done = python(SFT, *words, cwd=tmp_path, env=environment(data) | TOKENS)
    assert done.status == 0, done.output[-3000:]
    assert list((tmp_path / "tuned/wandb").rglob("*.wandb"))
    files = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()]
    for secret in (KEY, *TOKENS.values()):
        assert secret not in done.output and not [f for f in files if secret.encode() in f]


def kept_ids(data: Path, folder: Path, rows: list[dict], tokenizer, flags: str = "") -> set[str]:
    """Ids that stage 2 keeps of these rows."""
    path = write_rows(folder / "rows.jsonl", rows)
    words = f"--pretrain start --dataset {path} --max_len 200 --topp {TOPP} {flags}".split()
    selector = folder / "ckpt/sft_selection_logits_softmax.parquet"
    args = cli.sft_parser().parse_args([*words, "--selector_path", str(selector)])
    tokenised = tokenize_rows(load_rows(str(path)), tokenizer, max_len=args.max_len)
    kept, _ = train_sft.select(args, tokenised)
    ids = set(id_text(kept.ids).to_pylist())
    assert len(ids) == len(kept)
    return ids


def test_stage_2_selects_the_same_rows_whatever_their_order(trained, data):
    _, folder, _, _ = trained
    rows, tokenizer = make_rows(USER_ROWS), make_tokenizer()
    expected = kept_ids(data, folder, rows, tokenizer)
    assert len(expected) == round(TOPP * USER_ROWS)
    shuffled = [rows[at] for at in np.random.default_rng(0).permutation(USER_ROWS)]
    new = make_rows(7, seed=9)
    drop = "--unscored drop"
    assert kept_ids(data, folder, shuffled, tokenizer) == expected
    assert kept_ids(data, folder, rows + rows, tokenizer, drop) == expected
    assert kept_ids(data, folder, new + shuffled, tokenizer, drop) == expected
    assert kept_ids(data, folder, rows, make_tokenizer(280, seed=4)) == expected


def same_files(one: Path, other: Path, pattern: str) -> None:
    names = sorted(path.name for path in one.glob(pattern))
    assert names and names == sorted(path.name for path in other.glob(pattern))
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def same_selection(one: Path, other: Path) -> None:
    assert read_selection(one).table.equals(read_selection(other).table)


def plain_words(data: Path, flags: str) -> list[str]:
    """Fine-tuning on every row."""
    return f"{COMMON} --dataset {data}/user.jsonl {flags}".split()


def test_the_best_model_is_the_one_of_the_lowest_eval_loss(data, tmp_path):
    """At this rate the loss first falls and then rises; the last model is not the best."""
    make_model(tmp_path / "start")
    flags = "--pretrain start --save_path tuned --save_best --eval_steps 1 --learning_rate 0.1"
    flags += " --max_epochs 2 --lr_scheduler constant --max_norm 0"
    words = plain_words(data, f"--eval_dataset {data}/eval.jsonl {flags}")
    done = python(SFT, *words, cwd=tmp_path, env=environment(data))
    assert done.status == 0, done.output[-3000:]
    lines = [line for line in metrics(tmp_path / "tuned/metrics.jsonl") if "eval/loss" in line]
    best = min(lines, key=lambda line: line["eval/loss"])
    assert 1 < best["step"] < lines[-1]["step"], lines
    assert f"best so far: tuned/best, step {best['step']}" in done.output
    answer_of(tmp_path / "tuned/best")
    words += "--pretrain tuned/best --learning_rate 0 --max_epochs 1 --save_path again".split()
    done = python(SFT, *words, cwd=tmp_path, env=environment(data))
    again = [line for line in metrics(tmp_path / "again/metrics.jsonl") if "eval/loss" in line]
    assert again[0]["eval/loss"] == pytest.approx(best["eval/loss"], abs=1e-5)


KILLED = {
    "selector": (SELECTOR, stage_1, f"--selector_estimator penalty_gap {LORA} --lora_dropout 0.1"),
    "sft": (SFT, plain_words, "--zero_stage 3"),
}


@pytest.mark.parametrize("stage", KILLED)
def test_a_killed_run_resumes_bitwise(data, tmp_path, stage):
    """kill -9 after the snapshot of step 6; steps between snapshot and kill are done again."""
    script, words_of, flags = KILLED[stage]
    flags += f" --pretrain {tmp_path}/start --save_path tuned --train_batch_size 4 --max_epochs 4"
    words = words_of(data, flags)
    make_model(tmp_path / "start")
    folders = [tmp_path / name for name in ("straight", "killed")]
    for folder in folders:
        folder.mkdir()
    env = environment(data)
    straight = deepspeed(script, *words, cwd=folders[0], env=env)
    assert straight.status == 0, straight.output[-3000:]

    words += ["--save_steps", "3", "--ckpt_path", "snapshots", "--max_ckpt_num", "2"]
    kill_once("snapshots/*/step_6", launched(script, *words), cwd=folders[1], env=env)
    resumed = deepspeed(script, *words, "--load_checkpoint", cwd=folders[1], env=env)
    assert resumed.status == 0, resumed.output[-3000:]
    assert resumed.output.count("resumed from") == 1

    runs = [folder / "tuned" for folder in folders]
    same_files(*runs, "*.safetensors")
    if stage == "selector":
        name = "ckpt/sft_selection_logits_softmax"
        for suffix in ("", "_ep1", "_ep4"):
            same_selection(*(folder / f"{name}{suffix}.parquet" for folder in folders))
        runs = [folder / name for folder in folders]
    logs = [metrics(run / "metrics.jsonl") for run in runs]
    for line in (line for log in logs for line in log):
        for speed in ("seconds", *SPEED):
            line.pop(speed, None)
    assert logs[0] == logs[1]
    if stage == "sft":  # ended, it is not done again
        log = (runs[1] / "metrics.jsonl").read_bytes()
        again = deepspeed(script, *words, "--load_checkpoint", cwd=folders[1], env=env)
        assert again.status == 0 and "to its end; --overwrite" in again.output
        assert (runs[1] / "metrics.jsonl").read_bytes() == log
    snapshots = list(folders[1].glob("snapshots/*/step_*"))
    assert len(snapshots) == 2
    check_dry_run(launched(script, *words, "--dry_run", 2), tmp_path, env, snapshots, runs[1])


def check_dry_run(words: list, folder: Path, env: dict, snapshots: list[Path], run: Path) -> None:
    """It leaves nothing, and what it tells is what the run with the same flags has taken."""
    (folder / "dry").mkdir()
    dry = run_words(words, cwd=folder / "dry", env=env)
    assert dry.status == 0 and not list((folder / "dry").iterdir()), dry.output[-3000:]
    told = re.search(
        r"dry run of 2 steps: (\S+) s a step, .* h for (\d+) steps .* memory (\S+) GiB "
        r"a rank; disk .* \(models \(1\) (\S+), checkpoints \(2\) (\S+?)[,)].*nothing was written",
        dry.output,
    )
    seconds, steps, memory, model, kept = map(float, told.groups())
    log = metrics(run / "metrics.jsonl")
    assert steps == max(line["step"] for line in log) and 0.1 < memory < 4
    assert 0.1 < seconds * steps / log[-1]["seconds"] < 3
    written = sum(path.stat().st_size for at in snapshots for path in at.glob("engine_*"))
    assert kept * 2**30 == pytest.approx(written, rel=0.1, abs=2e4)  # headers
    weights = sum(path.stat().st_size for path in (folder / "killed/tuned").glob("*.safetensors"))
    assert model * 2**30 == pytest.approx(weights, rel=0.1, abs=4e3)


def test_the_same_run_writes_the_same_artefact(data, tmp_path):
    """Every byte of it: same seed, machine and number of ranks."""
    make_model(tmp_path / "start")
    flags = (
        f"--pretrain {tmp_path}/start --selector_estimator penalty_gap {LORA} --lora_dropout 0.1"
    )
    words, found = stage_1(data, f"{flags} --wandb_run_name one"), []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        done = deepspeed(SELECTOR, *words, cwd=tmp_path / name, env=environment(data))
        assert done.status == 0, done.output[-3000:]
        found.append((tmp_path / name / "ckpt/sft_selection_logits_softmax.parquet").read_bytes())
    assert found[0] == found[1]


OTHER_RANKS = {  # the last two: ranks before, ranks after
    "selector": (
        SELECTOR,
        stage_1,
        f"--selector_estimator penalty_gap {LORA} --zero_stage 2",
        2,
        1,
    ),
    "sft": (SFT, plain_words, "--zero_stage 3", 1, 2),
}


@pytest.mark.parametrize("stage", OTHER_RANKS)
def test_a_run_goes_on_with_another_number_of_ranks(data, tmp_path, stage):
    """The straight run's own snapshot of its half: the second half is done again."""
    script, words_of, flags, before, after = OTHER_RANKS[stage]
    make_model(tmp_path / "start")
    flags += " --pretrain start --save_path tuned --train_batch_size 4 --max_epochs 4"
    words = words_of(data, f"{flags} --save_steps 10 --ckpt_path snapshots")
    options = {"cwd": tmp_path, "env": environment(data)}
    assert deepspeed(script, *words, ranks=before, **options).status == 0
    weights = next((tmp_path / "tuned").glob("*.safetensors"))
    straight = load_file(weights)
    words += ["--load_checkpoint", next(tmp_path.glob("snapshots/*/step_10"))]
    resumed = deepspeed(script, *words, ranks=after, **options)
    assert resumed.status == 0 and "step 11 " in resumed.output, resumed.output[-3000:]
    for name, tensor in load_file(weights).items():
        torch.testing.assert_close(tensor, straight[name], atol=1e-4, rtol=0)
