"""The README's commands as they stand, on somebody's own rows: scores, report, fine-tuning."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from launch import ROOT, deepspeed, run
from tiny_world import make_model, make_rows, write_rows

from seal.selection.artefact import read_selection

FORMATS = ROOT.parent / "shared/data/formats"
OWN = [FORMATS / "lima_history.json", FORMATS / "dolly.jsonl"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FORMATS.exists(), reason="needs the research data in ../shared/data"),
]


def command(start: str, values: dict[str, str]) -> list[str]:
    """The words of the README's command that starts so, its placeholders filled in."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    line = re.search(rf"^{re.escape(start)} .*$", text, flags=re.M)[0]
    return shlex.split(re.sub(r"<[^>]+>", lambda match: values[match[0]], line))


def test_from_own_rows_to_report_and_model_by_the_readme(tmp_path):
    make_model(tmp_path / "model")
    safe = write_rows(tmp_path / "safe.jsonl", make_rows(20, seed=1))
    bad = [row | {"response": "7 14 21 28"} for row in make_rows(24, seed=3)]
    bad = write_rows(tmp_path / "bad.jsonl", bad)
    here = tmp_path / "examples/scripts"  # as the README's `cd`
    here.mkdir(parents=True)
    values = {
        "<aligned model>": str(tmp_path / "model"),
        "<safe data>": str(safe),
        "<known-bad rows>": str(bad),
        "<your rows>": ",".join(map(str, OWN)),
        "<where the model goes>": "tuned",
    }
    (config,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    fitting = config.replace("<aligned model>", values["<aligned model>"])
    fitting = fitting.replace("max_len: 2048", "max_len: 128")  # its positions
    (here / "run.yaml").write_text(fitting)
    _, _, _, script, *flags = command("deepspeed --log_level critical ../score_dataset.py", values)
    done = deepspeed(ROOT / "examples" / Path(script).name, *flags, cwd=here)
    assert done.status == 0, done.output[-3000:]
    scored = len(read_selection(tmp_path / "ckpt/mine.parquet"))
    assert f"user rows: {scored} of 80 read" in done.output
    kept = round(0.8 * scored)

    done = run([sys.executable, "-m", *command("seal report", values)], cwd=here)
    assert done.status == 0, done.output
    page = (here / "report.html").read_text()
    assert f"{kept} of {scored} rows kept" in page
    assert "brainstorming" in page

    _, _, _, script, *flags = command("deepspeed --log_level critical ../train_sft.py", values)
    done = deepspeed(ROOT / "examples" / Path(script).name, *flags, cwd=here)
    assert done.status == 0, done.output[-3000:]
    assert f"{kept} of {scored} rows kept at topp 0.8" in done.output
    assert f"| kept | `{kept}` |" in (here / "tuned/README.md").read_text()
