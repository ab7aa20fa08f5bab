"""What a user meets first: scripts, packaging and documents say what is there."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import seal
from seal.cli import flags as cli

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "examples/scripts"
RUNS = sorted(SCRIPTS.glob("train_*.sh"))
SHELL_FILES = [*sorted(SCRIPTS.glob("*.sh")), ROOT / "tests/run.sh", ROOT / ".ci/run"]
PARSERS = {
    "train_sft_selector.py": cli.selector_parser,
    "train_sft.py": cli.sft_parser,
    "score_dataset.py": cli.score_parser,
}
IMPORT_OF = {
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
    "flash-attn": "flash_attn",
    "liger-kernel": "liger_kernel",
    "data-selection": "data_selection",
    "huggingface-hub": "huggingface_hub",
}


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def requirement_name(line):
    return re.match(r"[A-Za-z0-9_.-]+", line)[0].lower().replace("_", "-")


def pins():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def setup_requirements():
    """All ranges in setup.py: name -> specifier."""
    call = next(
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    fields = {word.arg: word.value for word in call.keywords}
    ranges = ast.literal_eval(fields["install_requires"])
    extras = ast.literal_eval(fields["extras_require"])
    lines = [*ranges, *(line for lines in extras.values() for line in lines)]
    return {requirement_name(line): line[len(requirement_name(line)) :] for line in lines}


def command_of(script):
    """The words a script hands to `launch`, its variables but for SEAL_ROOT still in them."""
    text = script.read_text().replace("\\\n", " ").replace("$SEAL_ROOT", str(ROOT))
    line = next(line for line in text.splitlines() if line.startswith("launch "))
    return shlex.split(line)[1:]


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_shell_files_parse(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_every_published_run_has_its_script():
    names = {path.stem for path in RUNS}
    assert names == {
        *(f"train_selector_{model}" for model in ("llama3", "phi3", "pythia")),
        *(f"train_seal_sft_{model}" for model in ("llama3", "merlinite", "pythia")),
        *(f"train_sft_{model}" for model in ("llama3", "merlinite", "pythia")),
        *(f"train_seal_safeinstr_sft_{model}" for model in ("llama3", "merlinite")),
    }


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_published_run_is_strict_overridable_and_known_to_the_parser(path):
    text = path.read_text()
    assert "\nset -euo pipefail\n" in text
    script, *words = command_of(path)
    assert text.rstrip().endswith('"$@"') and words.pop() == "$@"
    args = PARSERS[script]().parse_args([*words, "--max_epochs", "7", "--seed", "9"])
    assert (args.max_epochs, args.seed) == (7, 9)
    assert args.train_batch_size == 64 and args.max_len == 2048 and args.learning_rate == 1e-5


def test_published_selector_settings():
    words = command_of(SCRIPTS / "train_selector_llama3.sh")[1:]
    args = cli.selector_parser().parse_args(words[:-1])
    assert args.selector_optim == "adam" and args.selector_activation == "softmax"
    assert (args.selector_learning_rate, args.upperlevel_weight) == (5e-3, 1.0)
    assert (args.upperlevel_weight_decay, args.max_epochs) == (0.03, 3)
    assert (args.lora_rank, args.lora_alpha, args.target_modules) == (16, 16, ["q_proj", "v_proj"])
    assert args.bf16 and args.flash_attn and args.gradient_checkpointing and args.zero_stage == 3


def test_scripts_run_from_any_directory_and_name_a_missing_launcher(tmp_path):
    environment = {
        "PATH": "/usr/bin:/bin",
        "SEAL_LAUNCHER": "no-such-launcher",
        "CONDA_PREFIX": "/",
    }
    done = subprocess.run(
        ["bash", str(SCRIPTS / "train_sft_llama3.sh")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'no-such-launcher' is not on PATH")


def test_a_script_passes_its_flags_on_in_order(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "SEAL_LAUNCHER": "printf %s\\n", "CONDA_PREFIX": "/"}
    done = subprocess.run(
        ["bash", str(SCRIPTS / "train_seal_sft_llama3.sh"), "--save_path", "a folder"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.splitlines()
    assert words[0] == str(ROOT / "examples/train_sft.py")
    assert words[-2:] == ["--save_path", "a folder"]
    assert str(ROOT / "data/RedOrca") in words


def test_a_step_of_the_quickstart_is_never_silent_for_long(tmp_path):
    script = f"""set -euo pipefail
    source {SCRIPTS}/bootstrap.sh
    SILENCE=0.3
    watched {tmp_path}/log bash -c 'printf "one\\rtwo\\r"; sleep 1'
    watched {tmp_path}/log false || echo "status $?"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    *between, last = done.stdout.splitlines()
    assert len(between) in (2, 3) and set(between) == {"[seal]   two"}
    assert last == "status 1"


def test_requirements_pin_what_setup_allows():
    from packaging.specifiers import SpecifierSet

    ranges, pinned = setup_requirements(), pins()
    for name, version in pinned.items():
        assert version in SpecifierSet(ranges[name]), name
    unpinned = set(ranges) - set(pinned)
    assert unpinned == {"flash-attn", "liger-kernel", "bitsandbytes"}  # need CUDA
    assert next(iter(pinned)) == "torch"


def test_setup_runs():
    command = [sys.executable, "setup.py", "--name", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["seal", seal.__version__]


def test_metadata_stands_in_setup_alone():
    assert "project" not in tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_import_is_declared():
    declared = {IMPORT_OF.get(name, name) for name in setup_requirements()}
    local = {"seal", *(path.stem for path in ROOT.rglob("*.py") if ".venv" not in path.parts)}
    undeclared = {}
    for path in tracked_files():
        if path.suffix != ".py" or path.relative_to(ROOT).parts[0] not in ("seal", "examples"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                if top not in declared | local | sys.stdlib_module_names:
                    undeclared[top] = str(path.relative_to(ROOT))
    assert not undeclared


def test_readme_names_what_exists():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    commands = re.findall(r"(?:bash|python) ((?:\w+/)*\w+\.(?:sh|py))", text)
    commands = [
        name if "/" in name else f"examples/scripts/{name}" for name in commands if name != "x.sh"
    ]
    entries = [f"examples/{name}" for name in re.findall(r"deepspeed \.\./(\w+\.py)", text)]
    missing = [name for name in [*links, *commands, *entries] if not (ROOT / name).exists()]
    assert not missing


def test_readme_commands_parse(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, flags=re.S)[1])
    lines = re.findall(r"^deepspeed --log_level critical \.\./(\w+\.py) (.*)$", text, flags=re.M)
    assert {script for script, _ in lines} == set(PARSERS)
    for script, flags in lines:
        words = shlex.split(re.sub(r"<[^>]*>", "VALUE", flags))
        PARSERS[script]().parse_args(words)


def test_tree_holds_no_machine_paths():
    needles = [b"/" + name for name in (b"work/", b"root/", b"home/")]
    needles += [host.encode() for host in ("pypi" + ".org", "python" + "hosted.org")]
    found = [
        f"{path.relative_to(ROOT)}: {needle.decode()}"
        for path in tracked_files()
        if path.exists() and path.suffix not in (".png", ".svg", ".pt", ".parquet")
        for needle in needles
        if needle in path.read_bytes()
    ]
    assert not found


def test_pictures_are_what_the_script_draws(tmp_path):
    draw = [sys.executable, str(ROOT / "docs/draw_pictures.py"), "--out", str(tmp_path)]
    subprocess.run(draw, check=True)
    for name in ("seal_logo", "seal_framework"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        drawn, kept = (folder / f"{name}.svg" for folder in (tmp_path, ROOT / "docs"))
        assert drawn.read_text().count("<path") == kept.read_text().count("<path")
