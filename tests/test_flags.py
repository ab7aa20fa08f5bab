"""The flags of the training scripts: published names and defaults, all read, all explained."""

import ast
import importlib
from dataclasses import fields
from pathlib import Path

import pytest

from seal.utils import cli

ROOT = Path(__file__).resolve().parents[1]
CLI = ROOT / "seal/utils/cli.py"
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
    "disable_fast_tokenizer": False,
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
    "apply_chat_template": False,
    "trust_remote_code": False,
    "attn_implementation": None,
    "use_tensorboard": False,
}
OWN = {
    "train_sft_selector": {
        "new_dataset": "U",
        "selector_activation": "softmax",
        "selector_learning_rate": 1e-2,
        "selector_lr_scheduler": "constant",
        "upperlevel_weight": 0.9,
        "upperlevel_weight_decay": 0.1,
    },
    "train_sft": {
        "selector_path": None,
        "topp": 1.0,
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
NOT_OFFERED = {"ref_constant", "normalize_l2"}


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
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "cli.settings"
    ]
    assert filled
    classes = [vars(importlib.import_module(modules[name]))[name] for name in filled]
    return {field.name for cls in classes for field in fields(cls)}


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_every_flag_is_read(script):
    tree = ast.parse((ROOT / f"examples/{script}.py").read_text())
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
def test_an_unknown_flag_is_refused(script, capsys):
    for words in (["--no_such_flag", "1"], ["--max_len", "many"], ["--seed"]):
        with pytest.raises(SystemExit) as stopped:
            SCRIPTS[script]().parse_args([*NEEDED[script], *words])
        assert stopped.value.code == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
