"""The `seal` command: output, files and exit status; every subcommand also as a process."""

import contextlib
import gzip
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from seal.command import main
from seal.command.export import FORMATS
from seal.datasets import load_rows
from seal.ids import id_text
from seal.selection.artefact import kept_mask, read_selection, selection_meta, write_selection
from seal.selection.calibration import calibrate

ROOT = Path(__file__).resolve().parents[1]
N = 40


def seal(*arguments, status: int = 0) -> str:
    """`seal ...` in this process; its output, or its error where `status` is 2."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main([*map(str, arguments)]) == status, err.getvalue()
    return err.getvalue() if status == 2 else out.getvalue()


def process(*arguments) -> subprocess.CompletedProcess:
    """`seal ...` as a user runs it."""
    command = [sys.executable, "-m", "seal", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)


def seal_json(*arguments) -> dict:
    return json.loads(seal(*arguments, "--json"))


def refused(*arguments) -> str:
    message = seal(*arguments, status=2)
    assert message.startswith("error: ") and message.count("\n") == 1, message
    return message


def odd_lines() -> list[bytes]:
    """JSON lines that no JSON writer reproduces: spaces, escapes, key order, extra columns."""
    lines = []
    for i in range(N):
        gap = " " * (i % 3)
        row = f'{{{gap}"note": {i}.50, "prompt":{gap}"ques\\u0074ion {i % 35} é", "response":"a"}}'
        lines.append(row.encode() + (b"\r\n" if i % 7 == 0 else b"\n"))
    return lines


def score_file(path, names: str, seed: int = 0, topp_rows: slice = slice(None)):
    """Writes a selector with random scores for the rows of the datasets `names`; the rows."""
    rows = load_rows(names)
    columns = {name: rows[name][:][topp_rows] for name in ("id", "occurrence", "row")}
    n = len(columns["id"])
    rng = np.random.default_rng(seed)
    columns |= {"score": rng.standard_normal(n), "weight": rng.random(n) + 0.1}
    meta = selection_meta(
        method="safe_loss",
        arguments={"learning_rate": 1e-5, "l2": 0.0},
        fingerprint="feed",
        raw=len(rows),
        skipped={"too long": len(rows) - n},
        model="tiny",
        tokenizer="tiny",
        max_len=64,
        seed=0,
    )
    write_selection(path, columns, meta)
    return rows


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A directory with data.jsonl (40 rows, of which 5 occur twice) and its selector."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "data.jsonl").write_bytes(b"".join(odd_lines()))
    score_file(folder / "a.parquet", str(folder / "data.jsonl"))
    return folder


def kept_lines(home, topp: float = 0.5) -> list[bytes]:
    kept = kept_mask(read_selection(home / "a.parquet").score, topp)
    return [line for line, keep in zip(odd_lines(), kept, strict=True) if keep]


def export(home, out, *more, dataset="data.jsonl", topp=0.5) -> dict:
    flags = ("--dataset", home / dataset, "--topp", topp, "--out", out, *more)
    return seal_json("export", home / "a.parquet", *flags)


# --- the command itself ---


def test_help_is_quick_and_loads_no_torch():
    start = time.perf_counter()
    assert "doctor" in process("--help").stdout
    assert time.perf_counter() - start < 5  # 0.4 s on an idle machine; the limit allows a busy one
    code = (
        "import seal.command, sys; print([m for m in ('torch', 'deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_bad_input_is_one_line_and_status_2(home, tmp_path):
    assert "no such file" in refused("show", tmp_path / "absent.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    assert "not a readable Parquet file" in refused("show", tmp_path / "bad.parquet")
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,response\na,b\n")
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "rows.parquet")
    for path in (rows, tmp_path / "rows.parquet"):
        told = refused("show", path)
        assert f"{path}: no selector: " in told
        assert "give the .parquet that selector training wrote" in told
        path.unlink()
    flags = ("--dataset", home / "data.jsonl", "--out", tmp_path / "x")
    for words, complaint in (
        (("export", "a.parquet"), "arguments are required: --dataset, --topp, --out; see seal"),
        (("exprot",), "COMMAND exprot: known are show, report, export,"),
        (("exprot",), "score-new, merge-scores, merge, doctor, completion; did you mean export?"),
        (("export", "a.parquet", *flags, "--topp", "80"), "0.8 keeps 80 %, or auto, got 80"),
    ):
        done = process(*words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and complaint in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "bad.parquet"]


def test_every_subcommand_as_a_process(home, tmp_path):
    a, data = home / "a.parquet", ("--dataset", home / "data.jsonl")
    for arguments in (
        ("show", a),
        ("compare", a, a),
        ("export", a, *data, "--topp", 0.5, "--out", tmp_path / "kept.jsonl"),
        ("doctor",),
    ):
        done = process(*arguments, "--json")
        assert (done.returncode, done.stderr) == (0, "") and json.loads(done.stdout)
    assert (tmp_path / "kept.jsonl").read_bytes() == b"".join(kept_lines(home))
    flags = ("--selector_tokenizer", "t", "--out", tmp_path / "x")
    for arguments in (
        ("convert", a, *data, *flags),
        ("merge", tmp_path, "--out", tmp_path / "x"),
    ):
        done = process(*arguments)
        assert done.returncode == 2 and done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_a_closed_pipe_is_no_error(home):
    command = f"{sys.executable} -m seal show {home}/a.parquet --top 40 | head -1; "
    command += "echo ${PIPESTATUS[0]}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env)
    assert done.stdout.splitlines()[-1] == "0" and done.stderr == ""


# --- show, compare ---


def test_show(home):
    text = seal("show", home / "a.parquet")
    assert "safe_loss, learning_rate 1e-05\n" in text and "visits" not in text
    assert "raw 40, scored 40, skipped: too long 0" in text
    result = seal_json("show", home / "a.parquet")
    selection = read_selection(home / "a.parquet")
    weight = selection.weight.astype(float)
    assert result["weights"]["ess"] == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
    assert result["score_percentiles"]["50"] == pytest.approx(np.median(selection.score))
    assert result["weights"]["entropy"] < result["weights"]["max_entropy"]


def test_show_says_what_a_selector_is_worth(home, tmp_path):
    selection = read_selection(home / "a.parquet")
    columns = {name: selection.column(name) for name in ("id", "occurrence", "row", "score")}
    evidence = {"reliability": 0.21, "moved": {"safe": {"safe": [2.0, 1.0], "rows": [2.0, 1.5]}}}
    calibration = calibrate(selection.score, selection.score[::3])
    meta = selection.meta | {"evidence": evidence, "calibration": calibration}
    write_selection(tmp_path / "b.parquet", columns, meta)
    text = seal("show", tmp_path / "b.parquet")
    assert "reliability, from the halves of each response: 0.21" in text
    assert "loss of held-out ones 2.000 to 1.000" in text and "AUROC against canaries: 0." in text
    assert text.count("warning: ") == 2 and "most of it is noise" in text
    assert seal_json("show", tmp_path / "b.parquet")["meta"]["evidence"] == evidence


def test_other_files_than_a_parquet_are_refused_with_the_remedy(home, tmp_path):
    torch.save(torch.zeros(3), tmp_path / "old.pt")
    assert "`seal convert` makes a .parquet of it" in refused("show", tmp_path / "old.pt")
    for words in (("show", home), ("export", home, "--topp", 1, "--out", tmp_path / "x")):
        data = ("--dataset", home / "data.jsonl")
        assert "is a folder; give a .parquet file (it holds: a.parquet" in refused(*words, *data)


def test_show_lists_best_and_worst_rows_with_their_text(home, tmp_path):
    lines = odd_lines()
    (tmp_path / "shuffled.jsonl").write_bytes(b"".join(lines[5:] + lines[:5]))
    flags = ("--top", 3, "--bottom", 2, "--dataset", tmp_path / "shuffled.jsonl")
    result = seal_json("show", home / "a.parquet", *flags)
    order = np.argsort(-read_selection(home / "a.parquet").score)
    assert [line["row"] for line in result["top"]] == order[:3].tolist()
    assert [line["row"] for line in result["bottom"]] == order[:-3:-1].tolist()
    for line in result["top"] + result["bottom"]:
        assert line["messages"][0]["content"] == f"question {line['row'] % 35} é"
    assert f"user: question {order[0] % 35} é" in seal("show", home / "a.parquet", *flags)


def test_show_of_another_dataset_is_refused_and_absent_rows_are_said(home, tmp_path):
    (tmp_path / "other.jsonl").write_text('{"prompt": "x", "response": "y"}\n')
    flags = ("show", home / "a.parquet", "--top", 2, "--bottom", 1, "--dataset")
    told = refused(*flags, tmp_path / "other.jsonl")
    assert "none of the 1 dataset rows is among the selector's 40 rows" in told
    best = int(np.argmax(read_selection(home / "a.parquet").score))
    lines = odd_lines()
    (tmp_path / "fewer.jsonl").write_bytes(b"".join(lines[:best] + lines[best + 1 :]))
    text = seal(*flags, tmp_path / "fewer.jsonl")
    assert "1 rows of the selector are not in this dataset" in text
    assert text.count("user: question") == 2
    assert seal_json(*flags, tmp_path / "fewer.jsonl")["missing"] == 1
    assert seal_json(*flags, home / "data.jsonl")["missing"] == 0
    assert "not in this dataset" not in seal(*flags, home / "data.jsonl")


def test_compare(home, tmp_path):
    same = seal_json("compare", home / "a.parquet", home / "a.parquet")
    assert same["overlap"] == 1 and same["spearman"] == pytest.approx(1)
    assert same["only_a"] == same["only_b"] == {"count": 0, "first_ids": []}
    score_file(tmp_path / "b.parquet", str(home / "data.jsonl"), 1, slice(10, None))
    result = seal_json("compare", home / "a.parquet", tmp_path / "b.parquet", "--topp", 0.5)
    a, b = read_selection(home / "a.parquet"), read_selection(tmp_path / "b.parquet")
    assert result["rows"] == {"a": 40, "b": 30, "common": 30}
    kept_a, kept_b = kept_mask(a.score, 0.5)[10:], kept_mask(b.score, 0.5)
    assert result["kept"]["both"] == (kept_a & kept_b).sum()
    assert result["only_b"]["count"] == (kept_b & ~kept_a).sum()
    assert result["only_b"]["first_ids"] == id_text(b.id[kept_b & ~kept_a][:5]).to_pylist()
    text = seal("compare", home / "a.parquet", tmp_path / "b.parquet")
    assert "common 30" in text and "kept by a only" in text
    (tmp_path / "other.jsonl").write_text('{"prompt": "x", "response": "y"}\n')
    score_file(tmp_path / "c.parquet", str(tmp_path / "other.jsonl"))
    message = refused("compare", home / "a.parquet", tmp_path / "c.parquet")
    assert "no row in common: a has 40, b has 1" in message


# --- export ---


def test_export_copies_the_lines_of_the_source(home, tmp_path):
    result = export(home, tmp_path / "kept.jsonl")
    assert (tmp_path / "kept.jsonl").read_bytes() == b"".join(kept_lines(home))
    assert (result["kept"], result["rows"], result["unscored"], result["missing"]) == (20, 40, 0, 0)
    export(home, tmp_path / "all.jsonl", topp=1)
    assert (tmp_path / "all.jsonl").read_bytes() == (home / "data.jsonl").read_bytes()


def test_export_copies_lines_from_any_json_lines_file(home, tmp_path):
    lines = odd_lines()
    text = b"\xef\xbb\xbf" + b"\n  \n".join(line.rstrip(b"\n") for line in lines)
    (home / "blank.json").write_bytes(text)
    (home / "packed.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    for dataset in ("blank.json", "packed.jsonl.gz"):
        export(home, tmp_path / "kept.jsonl", "--overwrite", dataset=dataset)
        assert (tmp_path / "kept.jsonl").read_bytes() == b"".join(kept_lines(home))


def test_export_of_blended_sources_keeps_their_order(tmp_path):
    lines = odd_lines()
    (tmp_path / "x.jsonl").write_bytes(b"".join(lines[:15]))
    (tmp_path / "y.jsonl").write_bytes(b"".join(lines[15:]))
    names = f"{tmp_path}/x.jsonl,{tmp_path}/y.jsonl"
    score_file(tmp_path / "a.parquet", names)
    flags = ("--topp", 0.5, "--out", tmp_path / "kept.jsonl", "--overwrite")
    seal("export", tmp_path / "a.parquet", "--dataset", names, *flags)
    assert (tmp_path / "kept.jsonl").read_bytes() == b"".join(kept_lines(tmp_path))
    probs = ("--dataset_probs", "0.5,0.5", "--seed", 3, "--unscored", "drop")
    seal("export", tmp_path / "a.parquet", "--dataset", names, *flags, *probs)
    blended = (tmp_path / "kept.jsonl").read_bytes().splitlines(keepends=True)
    rows = load_rows(names, probs="0.5,0.5", seed=3)
    place = {line: i for i, line in enumerate(lines)}
    expected = [
        o + 15 * n.endswith("y.jsonl")
        for o, n in zip(rows["origin_row"], rows["origin"], strict=True)
    ]
    found = [place[line] for line in blended]
    assert found == [i for i in expected if i in set(found)]


def test_export_of_other_sources_keeps_their_columns(home, tmp_path):
    (tmp_path / "rows.csv").write_text('prompt,response,n\n"a ""b""",c,007\nd,"e\nf",8\n')
    score_file(tmp_path / "a.parquet", str(tmp_path / "rows.csv"))
    export(tmp_path, tmp_path / "out.jsonl", dataset="rows.csv", topp=1)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert records[0] == {"prompt": 'a "b"', "response": "c", "n": "007"}
    assert records[1]["response"] == "e\nf"


def records_of(home, tmp_path, kind: str) -> list[dict]:
    export(home, tmp_path / f"{kind}.jsonl", "--format", kind)
    lines = (tmp_path / f"{kind}.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 20
    return records


def test_export_formats(home, tmp_path):
    selection = read_selection(home / "a.parquet")
    kept = np.flatnonzero(kept_mask(selection.score, 0.5))
    prompt = f"question {kept[0] % 35} é"
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "a"}]
    assert records_of(home, tmp_path, "messages")[0] == {"messages": messages}
    alpaca = {"instruction": prompt, "input": "", "output": "a", "system": "", "history": []}
    assert records_of(home, tmp_path, "alpaca")[0] == alpaca
    conversations = [{"from": "human", "value": prompt}, {"from": "gpt", "value": "a"}]
    sharegpt = {"conversations": conversations, "system": ""}
    assert records_of(home, tmp_path, "sharegpt")[0] == sharegpt
    weighted = records_of(home, tmp_path, "weights")
    np.testing.assert_allclose([r["weight"] for r in weighted], selection.weight[kept], rtol=1e-6)
    assert weighted[0]["messages"][1]["loss_scale"] == weighted[0]["weight"]
    assert "loss_scale" not in weighted[0]["messages"][0]
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert set(info) == {"alpaca", "sharegpt"}
    assert info["alpaca"]["file_name"] == "alpaca.jsonl"
    assert set(info["alpaca"]["columns"].values()) == set(alpaca)
    assert set(info["sharegpt"]["columns"].values()) == set(sharegpt)


def test_an_export_replaces_nothing_unasked_and_leaves_no_stale_entry(home, tmp_path):
    out, info = tmp_path / "kept.jsonl", tmp_path / "dataset_info.json"
    mine = {"file_name": "kept.jsonl", "columns": {"prompt": "q"}}
    info.write_text(json.dumps({"mine": mine}))
    export(home, out, "--format", "alpaca")
    before = {path: path.read_bytes() for path in (out, info)}
    flags = ("--dataset", home / "data.jsonl", "--topp", 0.5, "--out", out)
    told = refused("export", home / "a.parquet", *flags)
    assert f"{out} exists; give another --out, or --overwrite" in told
    assert before == {path: path.read_bytes() for path in (out, info)}
    text = seal("export", home / "a.parquet", *flags, "--overwrite")
    assert out.read_bytes() == b"".join(kept_lines(home))
    assert f"no longer in {info}: 'kept'" in text and json.loads(info.read_text()) == {"mine": mine}
    info.write_text("not JSON")
    told = refused("export", home / "a.parquet", *flags, "--overwrite", "--format", "sharegpt")
    assert "not a JSON object" in told and out.read_bytes() == b"".join(kept_lines(home))
    export(home, out, "--overwrite")
    assert info.read_text() == "not JSON"


def test_export_parquet(home, tmp_path):
    export(home, tmp_path / "kept.parquet", "--format", "parquet")
    table = pq.read_table(tmp_path / "kept.parquet")
    selection = read_selection(home / "a.parquet")
    kept = kept_mask(selection.score, 0.5)
    assert table["row"].to_pylist() == np.flatnonzero(kept).tolist()
    np.testing.assert_array_equal(table["score"].to_numpy(), selection.score[kept])
    assert table["messages"][0].as_py()[1] == {"role": "assistant", "content": "a"}


def test_export_of_turns(tmp_path):
    turns = [("system", "s"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    score_file(tmp_path / "a.parquet", str(tmp_path / "t.jsonl"))
    for kind in ("alpaca", "sharegpt"):
        export(tmp_path, tmp_path / f"{kind}.jsonl", "--format", kind, dataset="t.jsonl", topp=1)
    alpaca = json.loads((tmp_path / "alpaca.jsonl").read_text())
    assert alpaca == {
        "instruction": "3",
        "input": "",
        "output": "4",
        "system": "s",
        "history": [["1", "2"]],
    }
    sharegpt = json.loads((tmp_path / "sharegpt.jsonl").read_text())
    assert [turn["value"] for turn in sharegpt["conversations"]] == ["1", "2", "3", "4"]
    assert sharegpt["system"] == "s"


PAIR = ("q é", "a\n1")
TURNS = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
OPENAI = [{"role": role, "content": content} for role, content in TURNS]
SHAREGPT = [{"from": role, "value": content} for role, content in TURNS]
TRANSCRIPT = "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant: a2"
SYSTEM = {"system": "Be brief."}
SCHEMAS = {
    "messages": [{"messages": OPENAI}, {"messages": OPENAI, **SYSTEM}],
    "messages as JSON": [{"messages": json.dumps(OPENAI)}, {"messages": json.dumps(OPENAI[:2])}],
    "conversations": [{"conversations": SHAREGPT}, {"conversations": SHAREGPT, **SYSTEM}],
    "prompt, response": [dict(zip(("prompt", "response"), PAIR, strict=True)) | SYSTEM],
    "prompt, completion": [{"prompt": OPENAI[:3], "completion": OPENAI[3:]}],
    "prompt, chosen": [{"prompt": "q", "chosen": OPENAI, "rejected": OPENAI[:2]}],
    "question, response": [{"system_prompt": s, "question": "q", "response": "a"} for s in "ab"],
    "question, answer": [{"question": "q", "answer": "3 + 4 = 7\n#### 7"}],
    "alpaca": [
        {"instruction": "q", "input": text, "output": "a", "system": system, "history": history}
        for text, system, history in (("", "", []), ("x\ny", "s", [["q1", "a1"]]), ("x", "t", []))
    ],
    "dolly": [{"instruction": "q", "context": "c", "response": "a", "category": "x"}],
    "chosen": [{"chosen": TRANSCRIPT, "rejected": "r"}],
    "text": [{"text": "A harbour at dusk."}, {"text": "Its lamps."}],
    "keys of one's own": [{"ask": "q", "say": "a"}, {"ask": "r", "say": "b"}],
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_export_reads_back_to_the_same_ids(tmp_path, schema):
    records = SCHEMAS[schema]
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text("".join(json.dumps(record) + "\n" for record in records))
    keys = ":ask:say" if schema == "keys of one's own" else ""
    ids = score_file(tmp_path / "a.parquet", f"{dataset}{keys}")["id"][:]
    for kind in FORMATS:
        suffix = "parquet" if kind == "parquet" else "jsonl"
        out = tmp_path / f"{kind}.{suffix}"
        export(tmp_path, out, "--format", kind, dataset=f"rows.jsonl{keys}", topp=1)
        assert load_rows(f"{out}{keys if kind == 'jsonl' else ''}")["id"][:] == ids, kind


def test_rows_with_thoughts_tools_and_weights_survive_an_export_or_are_refused(tmp_path):
    call = {"type": "function", "function": {"name": "tides", "arguments": {"port": "Brest"}}}
    tools = [{"type": "function", "function": {"name": "tides", "parameters": {}}}]
    ask = {"role": "user", "content": "q"}
    records = [
        {"messages": [ask, {"role": "assistant", "content": "a", "reasoning_content": "thought"}]},
        {"messages": [ask, {"role": "assistant", "content": "", "tool_calls": [call]}]},
        {"messages": [ask, {"role": "assistant", "content": "a"}], "tools": tools},
        {"messages": [*OPENAI[:1], {**OPENAI[1], "weight": 0}, *OPENAI[2:]]},
        {"messages": OPENAI[:2]},
    ]
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text("".join(json.dumps(record) + "\n" for record in records))
    ids = score_file(tmp_path / "a.parquet", str(dataset))["id"][:]
    assert len(set(ids)) == 5
    for kind in ("jsonl", "messages", "weights", "parquet"):
        out = tmp_path / f"{kind}.{'parquet' if kind == 'parquet' else 'jsonl'}"
        export(tmp_path, out, "--format", kind, dataset="rows.jsonl", topp=1)
        assert load_rows(str(out))["id"][:] == ids, kind
    flags = ("--dataset", dataset, "--topp", 1, "--out", tmp_path / "x.jsonl")
    for kind in ("alpaca", "sharegpt"):
        told = refused("export", tmp_path / "a.parquet", *flags, "--format", kind)
        assert "row 0: holds reasoning_content; use --format messages" in told
    assert not (tmp_path / "x.jsonl").exists()


def test_an_export_of_several_schemas_reads_back(tmp_path):
    (tmp_path / "all").mkdir()
    for i, schema in enumerate(("prompt, response", "alpaca", "messages", "dolly")):
        lines = "".join(json.dumps(record) + "\n" for record in SCHEMAS[schema])
        (tmp_path / "all" / f"{i}.jsonl").write_text(lines)
    names = ",".join(f"{tmp_path}/all/{i}.jsonl" for i in range(4))
    ids = load_rows(names)["id"][:]
    assert score_file(tmp_path / "a.parquet", f"{tmp_path}/all")["id"][:] == ids
    for dataset in (f"{tmp_path}/all", names, f"{tmp_path}/all/*.jsonl"):
        flags = ("--dataset", dataset, "--topp", 1, "--out", tmp_path / "kept.jsonl", "--overwrite")
        seal("export", tmp_path / "a.parquet", *flags)
        assert load_rows(str(tmp_path / "kept.jsonl"))["id"][:] == ids


def test_rows_that_cannot_be_read_do_not_stop_an_export(home, tmp_path):
    lines = odd_lines()
    for kind in ("messages", "weights", "alpaca", "sharegpt"):  # a row without any message
        complaint = "" if kind in ("messages", "weights") else "roles [], needs user"
        (tmp_path / "none.jsonl").write_text('{"messages": null}\n{"messages": []}\n')
        score_file(tmp_path / "none.parquet", str(tmp_path / "none.jsonl"))
        flags = ("--dataset", tmp_path / "none.jsonl", "--topp", 1, "--out", tmp_path / kind)
        told = seal(
            "export",
            tmp_path / "none.parquet",
            *flags,
            "--format",
            kind,
            status=2 * bool(complaint),
        )
        assert complaint in told
    bad = b'{"prompt": "q", "response": 5}\n'
    (tmp_path / "rows.jsonl").write_bytes(b"".join([*lines[:7], bad, *lines[7:]]))
    flags = ("--dataset", tmp_path / "rows.jsonl", "--topp", 1, "--out", tmp_path / "kept.jsonl")
    seal("export", home / "a.parquet", *flags)
    assert (tmp_path / "kept.jsonl").read_bytes() == b"".join(lines)


def test_export_says_what_it_could_not_match(home, tmp_path):
    lines = [*odd_lines()[10:], b'{"prompt": "new", "response": "x"}\n']
    (tmp_path / "other.jsonl").write_bytes(b"".join(lines))
    flags = ["export", home / "a.parquet", "--dataset", tmp_path / "other.jsonl", "--topp", 1]
    flags += ["--out", tmp_path / "out.jsonl"]
    assert "1 of 31 dataset rows have no score, the first is row 30" in refused(*flags)
    assert not (tmp_path / "out.jsonl").exists()
    text = seal(*flags, "--unscored", "drop")
    assert "1 rows have no score: drop" in text
    assert "10 rows of the selector are not in this dataset" in text
    assert (tmp_path / "out.jsonl").read_bytes() == b"".join(lines[:-1])
    flags += ["--overwrite"]
    result = seal_json(*flags, "--unscored", "keep")
    assert (result["kept"], result["unscored"], result["missing"]) == (31, 1, 10)
    weights = seal_json(*flags, "--unscored", "keep", "--format", "weights")
    assert weights["kept"] == 31
    last = (tmp_path / "out.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["weight"] == 1


# --- merge, convert, doctor ---


def test_merge_gives_the_model_with_its_adapter(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    from test_artefact_published import word_tokenizer

    word_tokenizer().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, lora).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter/README.md").write_text("---\nlibrary_name: peft\n---\n\n# kept\n")
    done = process("merge", tmp_path / "adapter", "--out", tmp_path / "merged", "--json")
    result = json.loads(done.stdout)
    assert result["base"] == str(tmp_path / "base")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    card = (tmp_path / "merged/README.md").read_text()
    assert "library_name: transformers" in card and "# kept" in card
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(merged(tokens).logits, adapted(tokens).logits)
    assert "exists" in refused("merge", tmp_path / "adapter", "--out", tmp_path / "merged")
    assert "no adapter_config.json" in refused("merge", tmp_path / "base", "--out", tmp_path / "x")
    os.rename(tmp_path / "base", tmp_path / "moved")
    assert "give --base" in refused("merge", tmp_path / "adapter", "--out", tmp_path / "x")
    flags = ("--out", tmp_path / "x", "--base", tmp_path / "moved")
    seal("merge", tmp_path / "adapter", *flags)
    assert not list(tmp_path.glob(".x*")) and (tmp_path / "x").is_dir()


def test_convert(tmp_path):
    from test_artefact_published import word_rows, word_tokenizer

    from seal.datasets import published_length_filter

    rows, tokenizer = word_rows(tmp_path), word_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    passed = np.flatnonzero(published_length_filter(rows, tokenizer, max_len=16))
    torch.save(torch.nn.Parameter(torch.randn(len(passed))), tmp_path / "published.pt")
    flags = ["convert", tmp_path / "published.pt", "--dataset", tmp_path / "words.jsonl"]
    flags += ["--selector_tokenizer", tmp_path / "tokenizer", "--out", tmp_path / "x.parquet"]
    result = seal_json(*flags, "--selector_max_len", 16)
    assert result["dataset"]["scored"] == len(passed)
    assert read_selection(tmp_path / "x.parquet").row.tolist() == list(passed)
    message = refused(*flags, "--selector_max_len", 12)
    assert f"{len(passed)} logits, but " in message and "of 30 rows" in message


def test_doctor():
    result = seal_json("doctor")
    found = {check["name"]: check["found"] for check in result["checks"]}
    assert found["torch"] == torch.__version__
    assert {"deepspeed", "accelerator", "bf16", "c++", "memory", "disk", "cores"} <= set(found)
    text = seal("doctor", status=0 if result["ok"] else 1)
    assert "train a selector, fine-tune" in text and torch.__version__ in text
