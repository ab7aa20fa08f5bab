"""The flags of the training scripts: published names and defaults, all read, all explained."""

import ast
import importlib
import re
from dataclasses import fields
from pathlib import Path

import pytest

from seal.cli import batch_inference, evaluate
from seal.cli import flags as cli
from seal.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
CLI = ROOT / "seal/cli/flags.py"
SCRIPTS = {"train_sft_selector": cli.selector_parser, "train_sft": cli.sft_parser}
ALL_SCRIPTS = SCRIPTS | {"score_dataset": cli.score_parser}
NEEDED = {
    "train_sft_selector": ["--pretrain", "M", "--dataset", "S", "--new_dataset", "U"],
    "train_sft": ["--pretrain", "M", "--dataset", "S"],
}
BOTH = {  # name -> published default
    "pretrain": "M",
    "dataset": "S",
    "dataset_probs": "1.0",
    "max_len": 512,
    "max_samples": None,
    "max_epochs": 2,
    "micro_train_batch_size": 8,
    "train_batch_size": 128,
    "learning_rate": 2e-6,
    "lr_scheduler": "cosine",
    "l2": 0.0,
    "max_norm": 1.0,
    "seed": 42,
    "zero_stage": 2,
    "zpg": 1,
    "bf16": False,
    "flash_attn": False,
    "adam_offload": False,
    "grad_accum_dtype": None,
    "disable_trace_cache": False,
    "gradient_checkpointing": False,
    "gradient_checkpointing_use_reentrant": False,
    "load_in_4bit": False,
    "lora_rank": 0,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "target_modules": "all-linear",
    "aux_loss_coef": 0.0,
    "input_template": "Human: {}\nAssistant: ",
    "input_key": None,
    "output_key": None,
    "pretrain_mode": False,
    "save_steps": -1,
    "eval_steps": -1,
    "logging_steps": 1,
    "max_ckpt_num": 3,
    "max_ckpt_mem": 1000,
    "local_rank": -1,
    "use_wandb": None,
    "wandb_org": None,
    "wandb_group": None,
    # ours
    "lr_warmup_ratio": 0.03,
    "apply_chat_template": False,
    "trust_remote_code": False,
    "attn_implementation": None,
    "use_tensorboard": False,
}
OWN = {
    "train_sft_selector": {
        "new_dataset": "U",
        "selector_activation": "softmax",
        "selector_learning_rate": 0.1,
        "selector_lr_scheduler": "constant",
        "upperlevel_weight": 0.9,
        "upperlevel_weight_decay": 0.1,
    },
    "train_sft": {
        "selector_path": None,
        "topp": None,
        "eval_dataset": None,
        "eval_on_train": False,
        "save_best": False,
        "safeinstr_dataset": None,
        "unscored": "error",
        "selector_tokenizer": None,
        "selector_max_len": None,
    },
}
NO_PUBLISHED_DEFAULT = {"save_path", "ckpt_path", "wandb_project", "wandb_run_name"}
OF_A_COMMAND = {"out", "topp"}  # other things by the same name: what is written; no auto
NOT_OFFERED = {"ref_constant", "normalize_l2", "disable_fast_tokenizer"}


def flags(script: str) -> dict:
    """Name -> argparse action."""
    return {a.dest: a for a in ALL_SCRIPTS[script]()._actions if a.dest != "help"}


def args_read(tree: ast.AST) -> set[str]:
    """Every `name` of an `args.name`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "args"
    }


def settings_read(tree: ast.Module) -> set[str]:
    """Fields of the dataclasses that `cli.settings(Class, args, ...)` fills in this script."""
    modules = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    filled = [
        node.args[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "flags.settings"
    ]
    assert filled
    classes = [vars(importlib.import_module(modules[name]))[name] for name in filled]
    return {field.name for cls in classes for field in fields(cls)}


def test_no_flag_is_declared_twice():
    names = [name for group in cli.GROUPS.values() for name in group]
    assert len(names) == len(set(names)) > 120
    for path in (ROOT / "seal/command").glob("*.py"):
        assert (
            not set(re.findall(r'add_argument\(\s*"--(\w+)"', path.read_text()))
            & {*names} - OF_A_COMMAND
        )
    for parser in (*ALL_SCRIPTS.values(), batch_inference.parser, evaluate.parser):
        assert {action.dest for action in parser()._actions} <= {*names, "help", "config"}
    literal = [path for path in (ROOT / "seal").rglob("*.py") if r"Human: {}\n" in path.read_text()]
    assert literal == [ROOT / "seal/datasets/__init__.py"]


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_every_flag_is_read(script):
    tree = ast.parse((ROOT / f"seal/cli/{script}.py").read_text())
    read = args_read(tree) | args_read(ast.parse(CLI.read_text())) | settings_read(tree)
    assert flags(script).keys() - read == set()


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_every_flag_is_explained(script):
    assert [name for name, action in flags(script).items() if not action.help] == []
    text = ALL_SCRIPTS[script]().format_help()
    assert [name for name in flags(script) if f"--{name}" not in text] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_published_names_and_defaults(script):
    found = vars(SCRIPTS[script]().parse_args(NEEDED[script]))
    expected = BOTH | OWN[script]
    assert {name: found[name] for name in expected} == expected
    assert found.keys() >= NO_PUBLISHED_DEFAULT
    assert not found.keys() & NOT_OFFERED


def test_selector_s_own_flags():
    found = vars(cli.selector_parser().parse_args(NEEDED["train_sft_selector"]))
    assert found.keys() >= {"selector_name", "selector_save_dir", "selector_optim"}
    assert found["selector_optim"] in ("mirror", "adam")


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_is_refused(script):
    for words in (["--no_such_flag", "1"], ["--max_len", "many"], ["--seed"]):
        with pytest.raises(InputError) as refused:
            SCRIPTS[script]().parse_args([*NEEDED[script], *words])
        assert words[0] in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "flag, wrong, right",
    [
        ("train_batch_size", "0", "1"),
        ("save_steps", "0", "-1"),
        ("learning_rate", "nan", "0"),
        ("timeout_minutes", "0", "0.5"),
        ("upperlevel_weight", "1.5", "1"),
        ("canary_fraction", "1", "0.5"),
        ("max_len", "3", "4"),
    ],
)
def test_a_flag_s_bound_stands_with_it(tmp_path, flag, wrong, right):
    needed = NEEDED["train_sft_selector"]
    parse = cli.selector_parser().parse_args
    assert vars(parse([*needed, f"--{flag}", right]))[flag] == float(right)
    (tmp_path / "wrong.yaml").write_text(f"{flag}: {wrong}\n")
    for words in ([f"--{flag}", wrong], ["--config", str(tmp_path / "wrong.yaml")]):
        with pytest.raises(InputError, match=f"--{flag}: must be .*, got {wrong}"):
            parse([*needed, *words])


# --- --config ---


def configured(tmp_path, text: str, *words: str, script: str = "train_sft"):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return SCRIPTS[script]().parse_args(["--config", str(path), *words])


CONFIG = """
pretrain: M            # what is required may stand here
dataset: S
max_len: 2048
learning_rate: 1e-5    # text to YAML, a number to the flag
eval_steps: -1
target_modules: [q_proj, v_proj]
input_template: "Q: {}\\nA: "
bf16: true
flash_attn: false
eval_dataset:
topp: auto
"""


def test_a_config_is_read_like_its_flags(tmp_path):
    words = ["--pretrain", "M", "--dataset", "S", "--max_len", "2048", "--learning_rate", "1e-5"]
    words += ["--target_modules", "q_proj", "v_proj", "--input_template", "Q: {}\nA: ", "--bf16"]
    expected = vars(cli.sft_parser().parse_args([*words, "--topp", "auto"]))
    found = vars(configured(tmp_path, CONFIG))
    assert found.pop("config") == [str(tmp_path / "run.yaml")] and expected.pop("config") is None
    assert found == expected


def test_a_list_of_datasets_is_joined_by_commas(tmp_path):
    text = "dataset: [a.jsonl:ask:say, b.csv]\ndataset_probs: [0.5, 0.5]\ninput_key: [x, y]\n"
    found = configured(tmp_path, "pretrain: M\n" + text)
    assert (found.dataset, found.dataset_probs) == ("a.jsonl:ask:say,b.csv", "0.5,0.5")
    assert found.input_key == "x,y"


def test_flags_override_the_config(tmp_path):
    words = ["--max_len", "64", "--target_modules", "k_proj", "--flash_attn", "--dataset=T"]
    found = configured(tmp_path, CONFIG, *words)
    assert (found.max_len, found.target_modules, found.flash_attn) == (64, ["k_proj"], True)
    assert (found.dataset, found.learning_rate) == ("T", 1e-5)


def test_of_several_configs_the_later_wins(tmp_path):
    (tmp_path / "later.yaml").write_text("max_len: 32\n")
    found = configured(tmp_path, CONFIG, "--config", str(tmp_path / "later.yaml"))
    assert (found.max_len, found.learning_rate) == (32, 1e-5)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("max_length: 3", "unknown flag 'max_length'; did you mean max_len?"),
        ("max-len: 3", "unknown flag 'max-len'; did you mean max_len?"),
        ("zzz: 3", "unknown flag 'zzz'; --help lists the flags"),
        ("config: other.yaml", "unknown flag 'config'"),
        ("max_len: many", "max_len takes int, got 'many'"),
        ("max_len: 1.5", "max_len takes int, got 1.5"),
        ("max_len: [1, 2]", "max_len takes text or a number, got [1, 2]"),
        ("max_len: false", "max_len takes text or a number, got False"),
        ("bf16: 1", "bf16 is a switch: true or false, got 1"),
        ("- bf16", "must hold `flag: value` lines"),
        ("a: b: c", "cannot be read: mapping values are not allowed here"),
    ],
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_config_is_refused(tmp_path, script, text, complaint):
    with pytest.raises(InputError) as refused:
        configured(tmp_path, text, *NEEDED[script], script=script)
    assert complaint in str(refused.value)


def test_a_config_that_is_missing_is_refused():
    with pytest.raises(InputError, match=r"--config no-such.yaml cannot be read: \[Errno 2\]"):
        cli.sft_parser().parse_args(["--config", "no-such.yaml"])
    with pytest.raises(InputError, match="expected one argument"):
        cli.sft_parser().parse_args(["--config"])


def test_the_config_of_the_readme_parses(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    args = configured(tmp_path, text, *NEEDED["train_sft"])
    assert args.target_modules == ["q_proj", "v_proj"] and args.bf16


@pytest.mark.parametrize(
    "word, told",
    [
        ("--lr", "did you mean --learning_rate?"),
        ("--output_dir=out", "unknown flag --output_dir; did you mean --save_path?"),
        ("--num_train_epochs", "did you mean --max_epochs?"),
        ("--train_batch_sise", "did you mean --train_batch_size?"),
        ("--zzz", "--help lists the flags"),
    ],
)
def test_a_flag_of_another_name_is_told(word, told):
    with pytest.raises(InputError, match=re.escape(told)):
        cli.sft_parser().parse_args([*NEEDED["train_sft"], word, "3"])
