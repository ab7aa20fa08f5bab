"""The report: its numbers are the artefact's, its row text is inert, what is absent is said."""

import argparse
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from seal.assess.results import (
    FORMAT,
    Comparison,
    Measure,
    Results,
    Scores,
    summarise,
    write_results,
)
from seal.command import main, report
from seal.datasets import load_rows
from seal.errors import InputError
from seal.provenance import sha256_of_file
from seal.report import figures, write_report
from seal.report.rows import MAX_VALUE, tenths
from seal.report.runs import read_metrics, thin
from seal.selection.artefact import kept_mask, selection_meta, write_selection
from seal.selection.calibration import calibrate, share_kept
from seal.utils import record

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
EVIL = (
    "</p></li><script>document.title='pwned'</script>"
    "<img src=x onerror=\"document.title='pwned'\"><svg onload=\"document.title='pwned'\">"
    "<a href=\"javascript:document.title='pwned'\">x</a>{{ 7 * 7 }} \u202eesrever\u0007"
)
ROWS = 400


class Page(HTMLParser):
    """Tags, attributes, visible text and table rows of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.text, self.table_rows = [], [], [], []
        self.open = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "tr":
            self.table_rows.append([])
        if tag in ("td", "th"):
            self.table_rows[-1].append("")
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.table_rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        """Cells of the first table row whose header is `name`, without the empty bar."""
        return next([cell for cell in row if cell] for row in self.table_rows if row[0] == name)


def write_rows(path: Path) -> list[dict]:
    """A dataset where every fifth row is planted, and row 0 attacks the page."""
    rows = [
        {
            "prompt": f"Question {i}?",
            "response": "word " * (1 + i % 37),
            "provenance": "planted" if i % 5 == 0 else "benign",
            "source": f"<i>{i % 30}</i>",
            "hardness": i / ROWS,
        }
        for i in range(ROWS)
    ]
    rows[0]["response"] = EVIL
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return rows


def write_scores(path: Path, dataset: Path, score: np.ndarray | None = None, **extra):
    """An artefact of the dataset; planted rows score low."""
    rows = load_rows(str(dataset))
    place = np.asarray(rows["row"])
    if score is None:
        noise = np.random.default_rng(0).normal(size=len(rows))
        score = np.where(place == 0, -9.0, noise - 6.0 * (place % 5 == 0))
    columns = {"id": list(rows["id"]), "occurrence": np.asarray(rows["occurrence"]), "row": place}
    columns |= {"score": score, "loss": np.where(place % 7 == 0, np.nan, 1 - score)}
    meta = selection_meta(
        method="penalty_gap",
        arguments={"lr": 1e-5},
        fingerprint="f" * 16,
        raw=len(rows) + 2,
        skipped={"too long": 2},
        model="demo/model",
        tokenizer="demo/model",
        max_len=64,
        seed=0,
    )
    return write_selection(path, columns, meta | extra)


def a_results(measures: list, comparisons: list, confidence: float = 0.95) -> Results:
    """Results of an evaluation that wrote no other file."""
    about = (FORMAT, "evaluate.py", 0, confidence, {}, None, [], [], [])
    return Results(*about, measures, comparisons, verdicts={})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory with user.jsonl, sel.parquet, metrics.jsonl, results.json and report.html."""
    folder = tmp_path_factory.mktemp("report")
    write_rows(folder / "user.jsonl")
    calibration = {"auroc": 0.98, "auroc_interval": [0.96, 0.99], "n": 100, "threshold": -3.5}
    calibration |= {"recall": 0.97, "recall_interval": [0.91, 0.99]}
    write_scores(
        folder / "sel.parquet",
        folder / "user.jsonl",
        command="deepspeed train.py --name '<b>'",
        calibration=calibration,
    )
    records = [{"step": s, "epoch": 0, "loss": 3 / (s + 1), "rank_churn": 0.5} for s in range(500)]
    speed = {"train/lr": 1e-4, "train/tflops": 0.3, "train/peak_gib": 1.0, "train/utilisation": 0.1}
    records = [record | speed | {"train/tokens_per_second": 900.0} for record in records]
    records[7]["loss"] = float("nan")
    lines = "\n".join(json.dumps(record) for record in records)
    (folder / "metrics.jsonl").write_text(lines + '\n{"step": 500, "lo')
    refused = {"all rows": [1.0] * 2 + [0.0] * 48, "<em>ours</em>": [1.0] * 50}
    scores = [
        Scores(name, "set", "refusal", "rules", np.array(values), [""] * 50, [""] * 50)
        for name, values in refused.items()
    ]
    results = a_results([summarise(one, 0) for one in scores], [])
    results.tuned_on, results.seconds = {"all rows": ROWS}, {"selector": 90.0, "sft": 31.0}
    write_results(folder / "results.json", results)
    write_report(
        folder / "report.html",
        selection=folder / "sel.parquet",
        dataset=str(folder / "user.jsonl"),
        results=[folder / "results.json"],
        metrics=folder / "metrics.jsonl",
        topp=0.7,
        columns=("provenance", "source", "hardness"),
    )
    return folder


@pytest.fixture(scope="module")
def page(made) -> Page:
    return Page((made / "report.html").read_text())


def test_counts_are_those_of_the_artefact(made, page):
    rows = load_rows(str(made / "user.jsonl"))
    planted = np.asarray(rows["row"]) % 5 == 0
    selection = write_scores(made / "again.parquet", made / "user.jsonl")
    kept = kept_mask(selection.score, 0.7)
    text = " ".join(page.text)
    assert f"{kept.sum():,} of {ROWS} rows kept" in text
    cells = page.row("planted")
    assert cells[2:5] == [
        str(planted.sum()),
        str((kept & planted).sum()),
        str((~kept & planted).sum()),
    ]
    assert cells[5] == "20\u00a0%"
    bars = [re.findall(r"([\d,]+) kept, ([\d,]+) dropped$", t) for t in page.text]
    bars = np.array([b[0] for b in bars if b], int)
    assert len(bars) and set(map(tuple, bars)) <= {(k, d) for k in range(ROWS) for d in range(ROWS)}
    seen = {t for t in page.text if re.search(r"kept, [\d,]+ dropped$", t)}
    totals = np.array([re.findall(r"([\d,]+) kept, ([\d,]+) dropped$", t)[0] for t in seen], int)
    assert totals.sum(0).tolist() == [kept.sum(), ROWS - kept.sum()]
    assert figures.number(float(selection.score[kept].min()), 4) in text


def test_charts_are_of_what_was_learned(made):
    charts = re.findall(r"<figcaption><b>(.+?)</b>", (made / "report.html").read_text())
    assert charts == ["loss", "rank_<wbr>churn"]


def test_a_column_with_many_values_is_summed_up(page):
    rest = page.row("10 other values")
    assert rest[2] == str(sum(1 for i in range(ROWS) if i % 30 >= 20))


def test_numbers_are_cut_into_tenths_in_order(page):
    tenth = page.row("0 to 0.0975")
    assert tenth[2] == "40"


def test_evaluation_calibration_cost_and_command_are_shown(page):
    text = " ".join(page.text)
    assert page.row("all rows")[1:] == ["400", "4\u00a0%0.5\u00a0% to 13.7\u00a0%, n 50"]
    assert page.row("<em>ours</em>")[-1] == "100\u00a0%92.9\u00a0% to 100\u00a0%, n 50"
    assert page.row("AUROC")[1:] == ["0.98", "0.96 to 0.99"]
    assert page.row("total")[1:] == ["2 min 1 s"]
    assert "deepspeed train.py --name '<b>'" in text
    assert "1 values were not finite" in text
    assert "Not given" not in text


@pytest.mark.parametrize("kind", ["found", "chance", "preferred"])
def test_canaries_tell_their_own_threshold_and_what_an_interval_at_chance_means(
    made, tmp_path, kind
):
    first = write_scores(tmp_path / "sel.parquet", made / "user.jsonl").score
    canaries = {"found": first.min() - 1.0, "chance": 0.0, "preferred": first.max() + 1.0}[kind]
    spread = np.random.default_rng(1).normal(size=100)
    canaries = canaries + (spread if kind == "chance" else 0.001 * spread)
    score = np.random.default_rng(2).normal(size=ROWS) if kind == "chance" else first
    found = write_scores(
        tmp_path / "sel.parquet",
        made / "user.jsonl",
        score,
        calibration=calibrate(score, canaries),
        evidence={"reliability": 0.31, "moved": {"safe": {"safe": [2.0, 1.99]}}},
    )
    out = write_report(tmp_path / "r.html", selection=tmp_path / "sel.parquet", topp=0.5)
    text = " ".join(" ".join(Page(out.read_text()).text).split())
    if kind == "found":
        own = found.score[kept_mask(found.score, share_kept(found, "auto"))].min()
        assert f"The canaries' own threshold is {figures.number(float(own), 4)}" in text
        assert "interval of the AUROC" not in text
    else:
        assert "No calibrated threshold: --topp auto" in text
        wanted = {"chance": "covers 0.5: these canaries", "preferred": "is below 0.5: the score"}
        assert wanted[kind] in text
    evidence = text.split("Evidence for the score")[1].split("Calibration")[0]
    assert "tuned on the safe rows: loss of held-out ones 2.000 to 1.990" in evidence
    assert "reliability, from the halves of each response: 0.31" in evidence


def test_doubts_stand_out_and_arguments_are_folded(made, tmp_path):
    arguments = {f"flag_{i}": i for i in range(45)}
    evidence = {"reliability": 0.2}
    write_scores(
        tmp_path / "sel.parquet", made / "user.jsonl", evidence=evidence, arguments=arguments
    )
    told = []
    given = {"selection": tmp_path / "sel.parquet", "topp": 0.5, "warn": told.append}
    html = write_report(tmp_path / "r.html", **given).read_text()
    (box,) = re.findall(r'<p class="doubt"><b>In doubt:</b> (.+)\.</p>', html)
    assert [box] == told and "agrees at 0.2" in box
    (folded,) = re.findall(r"<details><summary>(.+?)</summary>(.+?)</details>", html, re.S)
    assert folded[0] == "Arguments (45)" and folded[1].count("<code>") == 45


def test_rows_of_several_files_are_split_by_file(tmp_path):
    """Of one file, the file is no column."""
    for half in ("a", "b"):
        (tmp_path / half).mkdir()
        write_rows(tmp_path / half / "user.jsonl")
    both = f"{tmp_path}/a/user.jsonl,{tmp_path}/b/user.jsonl"
    write_scores(tmp_path / "sel.parquet", both)
    given = {"selection": tmp_path / "sel.parquet", "topp": 0.5}
    page = Page(write_report(tmp_path / "r.html", **given, dataset=both).read_text())
    for name in both.split(","):
        shown = name if len(name) <= MAX_VALUE else "…" + name[1 - MAX_VALUE :]
        assert page.row(shown)[2] == str(ROWS)
    write_scores(tmp_path / "sel.parquet", one := tmp_path / "a/user.jsonl")
    page = Page(write_report(tmp_path / "r.html", **given, dataset=str(one)).read_text())
    assert page.row("benign") and not [row for row in page.table_rows if row[:1] == ["origin"]]


def test_nothing_active_or_remote_in_the_file(made, page):
    html = (made / "report.html").read_text()
    assert not {"script", "iframe", "object", "embed", "img", "form", "base"} & set(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] in ("src", "style")]
    links = [value for _, name, value in page.attributes if name in ("href", "xlink:href")]
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert "url(" not in html and "@import" not in html
    policies = [v for tag, name, v in page.attributes if tag == "meta" and name == "content"]
    assert any("default-src 'none'" in policy and "script-src" not in policy for policy in policies)
    shown = figures.visible(EVIL)
    assert shown in "".join(page.text) and "\u202e" not in html and "{{" in shown
    assert len(html) < 400_000


def dump_dom(page: Path, profile: Path) -> tuple[str, str]:
    """The page's DOM after loading, and what Chromium logged."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    flags += " --disable-background-networking --disable-component-update"
    flags += " --enable-logging=stderr --v=0 --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={profile}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium to open the page")
def test_chromium_runs_no_row_and_logs_nothing(made, tmp_path):
    dom, log = dump_dom(made / "report.html", tmp_path / "profile")
    assert "<title>SEAL report: sel.parquet</title>" in dom
    assert "CONSOLE" not in log, log
    (tmp_path / "bare.html").write_text(f"<title>before</title><p>{EVIL}</p>")
    dom, _ = dump_dom(tmp_path / "bare.html", tmp_path / "control")
    assert "<title>pwned</title>" in dom  # the same text, unescaped, does run here


def test_an_evaluation_shows_intervals_categories_and_what_is_not_told_apart(made, tmp_path):
    def measure(model, name, value, low, high, **more):
        return Measure(model, "set", name, "rules", 50, 1, value, low, high, None, True, **more)

    fraud = {"n": 5, "unscored": 0, "value": 2.5, "low": 2.0, "high": 3.0}
    results = a_results(
        [
            measure("ours", "refusal", 0.9, 0.8, 0.95),
            measure("ours", "harmfulness", 2.25, 2.0, 2.5, by_category={"fraud": fraud}),
            measure("plain", "refusal", 0.5, 0.4, 0.6),
            measure("plain", "harmfulness", None, None, None),
        ],
        [
            Comparison("ours", "plain", "set", "refusal", "rules", 49, 0.4, 0.3, 0.5, 0.01),
            Comparison("ours", "plain", "set", "harmfulness", "rules", 49, -0.5, -1.1, 0.1, 0.2),
        ],
        confidence=0.9,
    )
    write_results(tmp_path / "results.json", results)
    given = {"selection": made / "sel.parquet", "results": [tmp_path / "results.json"]}
    page = Page(write_report(tmp_path / "r.html", **given, topp=0.7).read_text())
    share = "90\u00a0%80\u00a0% to 95\u00a0%, n 50, 1 unscored"
    assert page.row("ours")[1:] == [share, "2.252 to 2.5, n 50, 1 unscored"]
    assert page.row("plain")[-1] == "not measured"
    assert page.row("fraud")[1:] == ["2.52 to 3, n 5"]
    told, untold = (row for row in page.table_rows if row[0] == "ours − plain")
    assert told[2:] == ["+40\u00a0points", "+30\u00a0points to +50\u00a0points", "49", "yes"]
    assert untold[2:] == ["−0.5", "−1.1 to +0.1", "49", "no"]
    assert "with 90\u00a0% intervals" in " ".join(page.text)


def test_redacted_report_has_no_row_text(made, tmp_path):
    given = {"selection": made / "sel.parquet", "dataset": str(made / "user.jsonl"), "topp": 0.7}
    out = write_report(tmp_path / "r.html", **given, columns=["provenance"], redact_text=True)
    html = out.read_text()
    assert "Question" not in html and "word" not in html and "pwned" not in html
    assert "planted" in html and "left out of this report on request" in html
    with pytest.raises(InputError, match="row text"):
        write_report(tmp_path / "x.html", **given, columns=["response"], redact_text=True)
    assert not (tmp_path / "x.html").exists()


def test_the_subcommand_writes_the_same_page(made, tmp_path):
    parser = argparse.ArgumentParser()
    report.add_parser(parser.add_subparsers())
    words = f"report {made}/sel.parquet --dataset {made}/user.jsonl --topp 0.7 --column provenance"
    args = parser.parse_args([*words.split(), "--no_text", "--out", str(tmp_path / "r.html")])
    result, text = args.run(args)
    size = (tmp_path / "r.html").stat().st_size
    assert result == {"report": str(tmp_path / "r.html"), "bytes": size, "doubts": []}
    assert str(tmp_path / "r.html") in text
    page = Page((tmp_path / "r.html").read_text())
    assert page.row("planted")[2] == "80" and "Question" not in " ".join(page.text)


def test_commands_in_the_page_hold_no_folder(made, tmp_path, monkeypatch):
    words = f"report {made}/sel.parquet --dataset {made}/user.jsonl --topp 0.7 --out {tmp_path}/r"
    monkeypatch.setattr("sys.argv", ["/opt/bin/seal", *words.split()])
    assert main(words.split()) == 0
    page = (tmp_path / "r").read_text()
    assert "seal report sel.parquet --dataset user.jsonl --topp 0.7 --out r<" in page
    assert str(made) not in page


def test_nothing_is_replaced_unasked(made, tmp_path, capsys):
    for name in ("sel.parquet", "user.jsonl"):
        shutil.copy(made / name, tmp_path)
    words = ["report", str(tmp_path / "sel.parquet"), "--dataset", str(tmp_path / "user.jsonl")]
    words += ["--topp", "0.7", "--out"]
    for name in ("sel.parquet", "user.jsonl"):
        before = (tmp_path / name).read_bytes()
        assert main([*words, str(tmp_path / name), "--overwrite"]) == 2
        assert f"{name} is one of the files to read" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == before
    assert main([*words, str(tmp_path / "r.html")]) == 0
    assert main([*words, str(tmp_path / "r.html")]) == 2
    assert "r.html exists; give another --out, or --overwrite" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "r.html"), "--overwrite"]) == 0


def test_absent_inputs_are_named(made, tmp_path):
    write_scores(tmp_path / "sel.parquet", made / "user.jsonl")
    out = write_report(tmp_path / "r.html", selection=tmp_path / "sel.parquet", topp=0.5)
    text = " ".join(Page(out.read_text()).text)
    for words in ("the dataset", "an evaluation", "training metrics", "a canary calibration"):
        assert words in text.split("Not given")[1].split(".")[0]
    assert "200 of 400 rows kept" in text


@pytest.mark.parametrize(
    ("given", "recorded", "told"),
    [
        ({"selector_path": "/x/moved.parquet", "topp": "auto"}, {"topp": 0.7}, None),
        ({"selector_path": "/x/sel.parquet", "topp": 0.7}, None, None),
        ({"method": "penalty"}, None, None),
        ({"selector_path": "/x/other.parquet", "topp": 0.7}, None, "the selector other.parquet"),
        (
            {"selector_path": "/x/sel.parquet", "topp": 0.7},
            {"sha256": "0" * 64, "topp": 0.7},
            "selector sel.parquet (another file of that name) keeps at topp 0.7; this",
        ),
        (
            {"selector_path": "/x/sel.parquet", "topp": "auto"},
            {"topp": 0.9},
            "sel.parquet keeps at topp 0.9; this report is of sel.parquet at topp 0.7",
        ),
        ({"selector_path": None, "topp": None}, None, "every row, without a selector"),
    ],
)
def test_curves_of_a_model_tuned_on_another_selection_are_said(
    made, tmp_path, capsys, given, recorded, told
):
    shutil.copy(made / "metrics.jsonl", tmp_path)
    if recorded:
        recorded = {"sha256": sha256_of_file(made / "sel.parquet")} | recorded
    record.write_run(given, tmp_path, recorded)
    words = ["report", made / "sel.parquet", "--topp", 0.7, "--metrics", tmp_path / "metrics.jsonl"]
    assert main([*map(str, words), "--out", str(tmp_path / "r.html")]) == 0
    warned = [line for line in capsys.readouterr().out.splitlines() if "warning: " in line]
    boxes = re.findall('<p class="doubt">(.+)</p>', (tmp_path / "r.html").read_text())
    assert len(warned) == len(boxes) == bool(told)
    if told:
        assert told in warned[0] and warned[0].removeprefix("warning: ") in boxes[0]


def test_input_that_does_not_belong_is_refused(made, tmp_path):
    given = {"selection": made / "sel.parquet", "topp": 0.7}
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "another", "response": "dataset"}))
    bad_results = tmp_path / "results.json"
    bad_results.write_text(json.dumps({"arms": {"a": {"refusal": 93}}}))
    bad_metrics = tmp_path / "metrics.jsonl"
    bad_metrics.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    for arguments, message in [
        ({"dataset": str(other)}, "none of the 400 scored rows"),
        ({"columns": ["source"]}, "need the dataset"),
        ({"dataset": str(made / "user.jsonl"), "columns": ["nope"]}, "'nope' is not in"),
        ({"results": [bad_results]}, "has format None"),
        ({"results": [tmp_path / "absent.json"]}, "cannot be read"),
        ({"metrics": bad_metrics}, "line 2 is not a JSON object"),
        ({"rows_shown": -1}, "must be 0 or more"),
        ({"topp": 80.0}, "topp must be in"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            write_report(tmp_path / "r.html", **(given | arguments))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("score", [np.zeros(ROWS), np.r_[1e8, np.arange(ROWS - 1)]])
@pytest.mark.parametrize("topp", [0.5, 1.0])
def test_constant_and_far_off_scores(made, tmp_path, score, topp):
    write_scores(tmp_path / "sel.parquet", made / "user.jsonl", score)
    out = write_report(tmp_path / "r.html", selection=tmp_path / "sel.parquet", topp=topp)
    text = " ".join(Page(out.read_text()).text)
    assert ("share the score at the cut" in text) == (topp < 1 and not score.any())
    assert ("score outside the axis" in text) == score.any()


def test_a_shrunk_dataset_is_said(made, tmp_path):
    lines = (made / "user.jsonl").read_text().splitlines()
    fewer = tmp_path / "fewer.jsonl"
    extra = json.dumps({"prompt": "new", "response": "row", "provenance": "benign"})
    fewer.write_text("\n".join([extra, *lines[10:]]))
    given = {"selection": made / "sel.parquet", "topp": 0.7, "dataset": str(fewer)}
    text = " ".join(Page(write_report(tmp_path / "r.html", **given).read_text()).text)
    assert "10 scored rows are not in" in text and "1 rows of" in text


def test_thinned_metrics_keep_mean_and_extremes(made):
    loss = next(s for s in read_metrics(made / "metrics.jsonl") if s.name == "loss")
    line = thin(loss)
    assert loss.broken == 1 and len(loss.value) == 499 and len(line.mean) == 150
    assert line.high.max() == loss.value.max() and line.low.min() == loss.value.min()
    assert (line.low <= line.mean).all() and (line.mean <= line.high).all()


def test_tenths_never_part_equal_values():
    values = np.r_[np.zeros(50), np.arange(1, 51), np.nan]
    groups = tenths(values)
    assert set(groups.code[:50]) == {0} and groups.code[-1] == -1
    for g in range(len(groups.names)):
        assert (groups.code == g).any()


@pytest.mark.parametrize(
    ("low", "high"), [(-0.027, 0.011), (0.0, 1e6), (-1e-5, 1e-5), (1.23, 1.2308)]
)
def test_labels_of_an_axis_stand_apart_on_a_phone(low, high):
    svg = figures.curve(np.array([low, high]), np.array([low, high]), "loss", "score")
    across = re.findall(r'<text class="tick \w+" x="([\d.]+)%" y="\d+">([^<]+)<', svg)
    left = re.findall(r'<text class="tick end" x="-6" y="[^"]+">([^<]+)<', svg)
    assert len(across) > 1 and len({*left}) == len(left) > 1
    for (x, text), (y, following) in itertools.pairwise(across):
        gap = (float(y) - float(x)) / 100 * figures.ROOM
        assert gap > figures.GLYPH * (len(text) + len(following)) / 2


@pytest.mark.parametrize("last", [2, 7, 10, 33, 1000])
def test_steps_and_counts_of_rows_are_whole(last):
    steps = np.arange(1.0, last + 1)
    svg = figures.curve(steps, steps / 7, "loss", "optimizer step", whole=True)
    at = re.findall(r'<text class="tick \w+" x="[\d.]+%" y="\d+">([^<]+)<', svg)
    few = np.ones(3, int)
    svg = figures.score_histogram(np.arange(4.0), few, few, 1.0)
    at += re.findall(r'<text class="tick end" x="-6" y="[^"]+">([^<]+)<', svg)
    assert len(at) > 2 and all(re.fullmatch(r"[\d,]+", text) for text in at)
    assert 'class="chart"' in svg and 'class="chart wide"' in figures.curve(
        steps, np.linspace(0, 1e6, last), "loss", "optimizer step"
    )
    assert figures.ticks(0.25, 0.75, 2, whole=True)  # no whole number there


def test_a_group_of_which_nothing_is_kept_is_drawn():
    svg = figures.share_columns(["a", "b"], np.array([0.0, 1.0]), 0.5, "length")
    assert re.findall(r'<rect class="(\w+)"[^>]*height="([\d.]+)"><title>([^<]+)', svg) == [
        ("dropped", "160.00", "length a: 0\u00a0% kept"),
        ("kept", "160.00", "length b: 100\u00a0% kept"),
    ]


def test_texts_of_numbers():
    assert [figures.number(x) for x in (16800, 0.04321, -2.0, 1e-5, 3.2e9)] == [
        "16,800", "0.0432", "\u22122", "1e\u22125", "3.2e9",
    ]  # fmt: skip
    assert figures.percent(1 / 3000) == "<\u00a00.1\u00a0%"
    assert figures.percent(2999 / 3000) == ">\u00a099.9\u00a0%"
    assert figures.percent(1.0) == "100\u00a0%"
    assert figures.distinct([1.2301, 1.2302]) == ["1.2301", "1.2302"]
    assert figures.distinct([0.5, 1.0]) == ["0.5", "1"] and figures.distinct([2.0]) == ["2"]
    assert figures.seams("a_b-<c>") == "a_<wbr>b-&lt;c&gt;"
    assert figures.seams("6.113 --rate") == "6.113 --rate"
    assert figures.ticks(0.0, 1.0, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert [figures.duration(s) for s in (4.2, 75, 7260)] == ["4.2 s", "1 min 15 s", "2 h 1 min"]
