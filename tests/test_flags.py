"""The flags of the training scripts: published names and defaults, all read, all explained."""

import ast
import contextlib
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

import seal
from seal.cli import batch_inference, evaluate
from seal.cli import flags as cli
from seal.cli.declared import FLAGS, GROUPS, REQUIRED
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
    "use_liger_kernel": False,
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


def settings_filled(tree: ast.Module) -> list[type]:
    """The dataclasses that `cli.settings(Class, args, ...)` fills in this script."""
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
    return [vars(importlib.import_module(modules[name]))[name] for name in filled]


def settings_read(tree: ast.Module) -> set[str]:
    """Fields of those dataclasses."""
    return {field.name for cls in settings_filled(tree) for field in fields(cls)}


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
    (tmp_path / "run.yaml").write_text(text)
    values = {"config": tmp_path / "run.yaml", "train_batch_size": 4}
    values |= {"new_dataset": "a", "dataset": "b", "method": "knn"}
    args = cli.score_parser().parse_values(values, "score")
    assert (args.learning_rate, args.train_batch_size) == (5e-4, 4)


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


def test_a_value_that_is_no_choice_is_told_with_the_choices_and_the_closest():
    words = [*NEEDED["train_sft"], "--unscored", "eror"]
    with pytest.raises(InputError) as refused:
        cli.sft_parser().parse_args(words)
    assert str(refused.value) == (
        "--unscored eror: known are error, drop, keep; did you mean error?"
    )


# --- a number that stands in several places is one number ---

# What decides the scores. How long a run is and how large its batch depend on the rows.
DECIDING = GROUPS["bilevel training"] | GROUPS["scoring"]
DECIDING |= {name: FLAGS[name] for name in ("canary_fraction", "max_canary_kept", "confidence")}
DECIDING = {
    name: flag
    for name, flag in DECIDING.items()
    if flag.default not in (None, False, REQUIRED)
    and name not in ("selector_estimator", "selector_head")  # another score by intention
}
PUBLISHED = {
    "selector_optim": {"adam"},
    "selector_learning_rate": {5e-3, 4e-3},
    "upperlevel_weight": {1.0},
    "upperlevel_weight_decay": {0.03, 0.02},
}
OTHERWISE = {  # file -> flag -> values that are not the default there
    "benchmarks/selection_methods.py": PUBLISHED | {"canary_fraction": {0.5}},
    "benchmarks/ours_step.py": PUBLISHED,  # timed beside the published step
    "benchmarks/oracle.py": {"influence_step": {1e-3}},  # plain SGD's
    "benchmarks/real_scores.py": {"influence_step": {1e-3}},  # an adapter's
    "docs/method.md": {"selector_optim": {"adam"}, "stop_churn": {0.02}},
    "docs/footguns.md": {
        "selector_optim": {"adam"},
        "upperlevel_weight": {1.0},
        "upperlevel_weight_decay": {0.0},
    },
}
for _model in ("llama3", "phi3", "pythia"):
    OTHERWISE[f"examples/scripts/train_selector_{_model}.sh"] = PUBLISHED


def stated(text: str) -> set[tuple[str, object]]:
    """(flag, value) wherever a text gives a deciding flag: --flag 1, flag: 1, flag=1."""
    text = re.sub(r"\\\n|\"\n\s*\"", " ", text)
    names = "|".join(DECIDING)
    found = re.findall(rf"\b({names})(?:=|:? )([\w.+-]*\w)", text)
    values = set()
    for name, word in found:
        with contextlib.suppress(ValueError):  # a variable of that name
            values.add((name, DECIDING[name].kind(word)))
    return values


def test_documents_examples_and_benchmarks_state_the_defaults():
    told = ["README.md", "docs/*.md", "ckpt/*.md", "examples", "benchmarks/*.[mps][dyh]"]
    listed = subprocess.run(["git", "ls-files", *told], cwd=ROOT, capture_output=True, text=True)
    files = listed.stdout.splitlines()
    assert {"README.md", "examples/scripts/quickstart.sh", "benchmarks/README.md"} <= {*files}
    found = {file: stated((ROOT / file).read_text(encoding="utf-8")) for file in files}
    others = {
        (file, name, value)
        for file, values in found.items()
        for name, value in values
        if value not in (DECIDING[name].default, *OTHERWISE.get(file, {}).get(name, ()))
    }
    assert others == set()
    assert all(found[file] for file in OTHERWISE)  # they are read


def test_the_quickstart_and_the_benchmarks_of_its_world_train_alike():
    sys.path.append(str(ROOT / "benchmarks"))
    import robustness
    import selection
    import selection_methods

    text = (ROOT / "examples/scripts/quickstart.sh").read_text()
    (demo,) = re.findall(r"^demo\)\n(.*?);;", text, flags=re.M | re.S)
    own = dict(re.findall(r"([A-Z_]+)=([^\s(]+)", demo))
    own["SHARED"] = re.search(r"SHARED=\((.*)\)", demo)[1]
    parse, needed = cli.selector_parser().parse_args, NEEDED["train_sft_selector"]
    quickstart = (
        f"{own['SHARED']} --apply_chat_template --lr_scheduler constant "
        f"--learning_rate {own['SCORE_RATE']} --max_epochs {own['LOOP_EPOCHS']}"
    )
    expected = vars(parse([*needed, *quickstart.split()]))
    loop = f"{selection_methods.COMMON} {selection_methods.METHODS['penalty']} --zero_stage 2"
    assert vars(parse([*needed, *loop.split()])) == expected
    saving = f"{robustness.FLAGS} --max_epochs 3 --max_ckpt_num 3 --selector_estimator penalty"
    assert vars(parse([*needed, *saving.split()])) == expected
    assert selection.SFT_RATE == float(own["TUNE_RATE"])
    assert f"TOPP:-{robustness.TOPP}}}" in text


def test_a_default_in_python_is_the_flag_s():
    trees = [ast.parse((ROOT / f"seal/cli/{script}.py").read_text()) for script in ALL_SCRIPTS]
    defaults = {
        (field.name, field.default)
        for tree in trees
        for cls in settings_filled(tree)
        for field in fields(cls)
        if field.default is not MISSING and field.name not in ("eval_steps", "save_steps")
    }  # those two take 0 for never, see `cadence`
    call = inspect.signature(seal.select).parameters.values()
    defaults |= {(p.name, p.default) for p in call if p.default is not p.empty}
    assert len(defaults) > 20
    assert {(n, d) for n, d in defaults if d != FLAGS[n].default} == set()
