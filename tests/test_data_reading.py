"""Files, folders and names to rows: nothing changed, nothing lost, bad input in one line."""

import csv
import gzip
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seal.datasets import load_rows, read_raw, row_id
from seal.datasets.identity import occurrences
from seal.errors import InputError
from seal.ids import id_bytes, id_text

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.exists(), reason="needs the research data in ../shared/data"
)

# Text that loaders like to turn into something else.
PAIRS = [
    ("007", "1.0"),
    ("2020-01-01", "2020-01-01T00:00:00Z"),
    ('say "hi", please', "line one\nline two\n"),
    ("NULL", "nan"),
    ("  spaces  ", "tab\there"),
    ("día 🙂", "\u2028 separators \x0b"),
    ("true", "1e5"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "seal"


def records(pairs=PAIRS):
    return [{"prompt": prompt, "response": response} for prompt, response in pairs]


def conversation(prompt, response):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def write(path: Path, rows: list[dict]) -> Path:
    """Writes `rows` as the suffix of `path` says, gzipped if it ends in .gz."""
    suffix = path.name.removesuffix(".gz").rpartition(".")[2]
    plain = path.with_name(path.name.removesuffix(".gz"))
    if suffix == "json":
        plain.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    elif suffix == "jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        plain.write_text("".join(lines), encoding="utf-8")
    elif suffix in ("csv", "tsv"):
        with open(plain, "w", newline="", encoding="utf-8") as file:
            cut = "\t" if suffix == "tsv" else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=cut)
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), plain)
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def pairs_of(rows) -> list[tuple[str, str]]:
    return [tuple(message["content"] for message in messages) for messages in rows["messages"]]


SUFFIXES = [s + gz for s in (".json", ".jsonl", ".csv", ".tsv", ".parquet") for gz in ("", ".gz")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_rows_and_ids(tmp_path, suffix):
    rows = load_rows(str(write(tmp_path / f"data{suffix}", records())))
    assert pairs_of(rows) == PAIRS
    assert list(rows["id"]) == [row_id(conversation(*pair)) for pair in PAIRS]
    assert list(rows["row"]) == list(rows["origin_row"]) == list(range(len(PAIRS)))
    assert rows.column_names == ["messages", "id", "origin", "origin_row", "occurrence", "row"]


def test_id_is_the_documented_hash():
    # printf '[["user","Hi"],["assistant","Hello é"]]' | sha256sum
    assert row_id(conversation("Hi", "Hello é")) == "c7a6238f5bd7637e07f6a3141108720f"


def test_provenance_is_not_carried_but_can_be_read_again(tmp_path):
    rows = [{**record, "provenance": "unsafe", "source": "x"} for record in records()]
    path = str(write(tmp_path / "a.jsonl", rows))
    assert not {"provenance", "source"} & set(load_rows(path).column_names)
    assert list(read_raw(path)["provenance"]) == ["unsafe"] * len(PAIRS)


def test_folder_of_shards_reads_in_order_of_name(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    write(folder / "part-00001.jsonl.gz", records(PAIRS[3:5]))
    write(folder / "part-00000.jsonl", records(PAIRS[:3]))
    write(folder / "part-00002.parquet", records(PAIRS[5:]))
    (folder / "README.md").write_text("not data")
    assert pairs_of(load_rows(str(folder))) == PAIRS


def test_folder_with_splits_reads_the_split_asked_for(tmp_path):
    write(tmp_path / "train-00000.jsonl", records(PAIRS[:3]))
    write(tmp_path / "test-00000.jsonl", records(PAIRS[3:]))
    assert pairs_of(load_rows(str(tmp_path))) == PAIRS[:3]
    assert pairs_of(load_rows(str(tmp_path), split="test")) == PAIRS[3:]
    with pytest.raises(InputError, match="no file of split 'validation'"):
        load_rows(str(tmp_path), split="validation")


def test_subset_of_a_folder_is_a_folder_in_it(tmp_path):
    (tmp_path / "harmless").mkdir()
    write(tmp_path / "harmless" / "a.jsonl", records())
    assert pairs_of(load_rows(f"{tmp_path}@harmless")) == PAIRS


def test_csv_of_a_spreadsheet(tmp_path):
    text = '\ufeffinstruction;input;output\r\n"Say ""yes""; now";;"yes, sir"\r\nb;c\td;e\r\n'
    (tmp_path / "semicolons.csv").write_bytes(text.encode())
    (tmp_path / "tabs.csv").write_bytes(text.replace("\t", ".").replace(";", "\t").encode())
    rows = load_rows(str(tmp_path / "semicolons.csv"))
    assert pairs_of(rows) == [('Say "yes"; now', "yes, sir"), ("b\nc\td", "e")]
    assert pairs_of(load_rows(str(tmp_path / "tabs.csv")))[0] == ('Say "yes"\t now', "yes, sir")


def test_patterns(tmp_path, monkeypatch):
    for i, name in enumerate(("b.jsonl", "a.jsonl", "c.csv", "test.jsonl")):
        write(tmp_path / name, records(PAIRS[i : i + 1]))
    rows = load_rows(f"{tmp_path}/?.jsonl")
    assert pairs_of(rows) == [PAIRS[1], PAIRS[0]] and set(rows["origin"]) == {f"{tmp_path}/?.jsonl"}
    assert len(load_rows(f"{tmp_path}/*")) == 4
    (tmp_path / "odd[1].jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert pairs_of(load_rows(f"{tmp_path}/odd[1].jsonl")) == [PAIRS[1]]
    with pytest.raises(InputError, match=r"no file matches .*\*\.parquet") as error:
        load_rows(f"{tmp_path}/*.parquet")
    assert_one_line(error)


def test_columns_are_named_for_each_dataset(tmp_path):
    a = write(tmp_path / "a.jsonl", [{"ask": "p", "say": "r", "prompt": "x", "response": "y"}])
    b = write(tmp_path / "b:c.jsonl", records([("q", "s")]))
    c = write(tmp_path / "c.jsonl", [{"talk": conversation("t", "u")}])
    assert pairs_of(load_rows(f"{a}:ask:say,{b},{c}:talk")) == [("p", "r"), ("q", "s"), ("t", "u")]
    keys = {"input_key": "ask,prompt", "output_key": "say,response"}
    assert pairs_of(load_rows(f"{a},{b}", **keys)) == [("p", "r"), ("q", "s")]
    assert pairs_of(load_rows(f"{a}:prompt:response,{a}", input_key="ask", output_key="say")) == [
        ("x", "y"),
        ("p", "r"),
    ]
    with pytest.raises(InputError, match="no column 'nothing'"):
        load_rows(f"{a}:nothing:say")
    with pytest.raises(InputError, match=r"2 columns .* for 3 datasets"):
        load_rows(f"{a},{b},{c}", **keys)


def test_a_folder_of_several_schemas(tmp_path):
    write(tmp_path / "a.jsonl", records(PAIRS[:2]))
    alpaca = [{"instruction": p, "input": "", "output": r} for p, r in PAIRS[2:4]]
    write(tmp_path / "b.csv", alpaca)
    dolly = [
        {"instruction": p, "context": "", "response": r, "category": "x"} for p, r in PAIRS[4:]
    ]
    write(tmp_path / "c.jsonl", dolly)
    assert pairs_of(load_rows(str(tmp_path))) == PAIRS
    write(tmp_path / "d.jsonl", [{"score": 1}])
    rows = load_rows(str(tmp_path))
    assert len(rows) == len(PAIRS) + 1 and rows[-1]["skip"] == "nothing in a known column"


def test_columns_that_nothing_reads_are_listed(tmp_path, caplog):
    caplog.set_level("INFO")
    turns = [{**message, "mood": "good"} for message in conversation("p", "r")]
    load_rows(str(write(tmp_path / "a.jsonl", [{"messages": turns, "source": "x", "n": 1}])))
    assert caplog.messages[-1].endswith("a.jsonl: not read: source, n, messages[].mood")


def test_saved_to_disk(tmp_path):
    saved = datasets.Dataset.from_list(records())
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "many"))
    assert pairs_of(load_rows(str(tmp_path / "one"))) == PAIRS
    assert pairs_of(load_rows(str(tmp_path / "many"))) == PAIRS
    with pytest.raises(InputError, match="has no split 'test'; it has train"):
        load_rows(str(tmp_path / "many"), split="test")


def test_lines_with_different_keys_and_nulls(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt": "a", "response": "b"}\n\n{"prompt": "c", "extra": 1}\n'
        '{"response": "d"}\n{"prompt": null, "response": null, "extra": "x", "other": {"k": 1}}\n'
    )
    assert pairs_of(load_rows(str(path))) == [("a", "b"), ("c", ""), ("", "d"), ("", "")]
    raw = read_raw(str(path))
    assert list(raw["extra"]) == [None, 1, None, "x"]  # two types in one column survive


def test_column_that_changes_type_after_many_rows(tmp_path):
    rows = [{"prompt": "p", "response": str(i), "note": i} for i in range(10_500)]
    rows[-1]["note"] = {"why": "text"}
    path = str(write(tmp_path / "a.jsonl", rows))
    assert read_raw(path)[10_499]["note"] == {"why": "text"}
    assert read_raw(path)[10_498]["note"] == 10_498
    assert pairs_of(load_rows(path))[-1] == ("p", "10499")


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "a.jsonl", records(PAIRS[:2]))
    assert pairs_of(load_rows(str(path))) == PAIRS[:2]
    write(path, records(PAIRS[2:4]))
    assert pairs_of(load_rows(str(path))) == PAIRS[2:4]


def test_a_second_read_writes_nothing(tmp_path, cache):
    path = str(write(tmp_path / "a.jsonl", records()))
    first = load_rows(path)
    before = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    second = load_rows(path)
    assert before == {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert second._fingerprint == first._fingerprint


def test_fingerprint_is_of_the_content_not_of_the_file(tmp_path):
    plain = load_rows(str(write(tmp_path / "a.jsonl", records())))
    packed = load_rows(str(write(tmp_path / "b.csv.gz", records())))
    shorter = load_rows(str(tmp_path / "a.jsonl"), max_samples=3)
    assert plain._fingerprint == packed._fingerprint != shorter._fingerprint


def test_concatenation_blending_and_max_samples(tmp_path):
    a = write(tmp_path / "a.jsonl", records([("a", str(i)) for i in range(50)]))
    b = write(tmp_path / "b.jsonl", records([("b", str(i)) for i in range(500)]))
    both = load_rows(f"{a}, {b}", probs="1.0")
    assert len(both) == 550 and both[50]["origin"] == str(b) and both[50]["origin_row"] == 0
    assert load_rows(f"{a},{b}", probs="1.0,1.0")["id"][:] == both["id"][:]

    mixed = load_rows(f"{a},{b}", probs="0.5,0.5", seed=1)
    of_a = [i for i, name in enumerate(mixed["origin"]) if name == str(a)]
    assert list(mixed.select(of_a)["origin_row"]) == list(range(50))  # first_exhausted: all of a
    assert 70 < len(mixed) < 150
    assert mixed["id"][:] == load_rows(f"{a},{b}", probs="0.5,0.5", seed=1)["id"][:]
    assert mixed["id"][:] != load_rows(f"{a},{b}", probs="0.5,0.5", seed=2)["id"][:]
    assert list(mixed["row"]) == list(range(len(mixed)))

    first = load_rows(f"{a},{b}", probs="0.5,0.5", seed=1, max_samples=20)
    assert 20 < len(first) < 60 and first["id"][:] == mixed["id"][: len(first)]
    of_each = load_rows(f"{a},{b}", max_samples=60)  # 60 rows of each dataset
    assert of_each["id"][:] == both["id"][:110]


def test_occurrences_number_copies_in_row_order(tmp_path):
    path = str(write(tmp_path / "a.jsonl", records([("x", "y"), ("z", "y"), ("x", "y")])))
    assert list(load_rows(f"{path},{path}")["occurrence"]) == [0, 0, 1, 2, 1, 3]
    rng = np.random.default_rng(0)
    ids = [f"{i:032x}" for i in rng.integers(0, 40, 300)]
    counted: dict[str, int] = {}
    expected = []
    for name in ids:
        expected.append(counted.get(name, 0))
        counted[name] = expected[-1] + 1
    assert id_text(id_bytes(pa.array(ids))).to_pylist() == ids
    assert occurrences(id_bytes(pa.chunked_array([ids[:99], ids[99:]]))).tolist() == expected


@needs_shared
def test_research_files_read_whole():
    mix = load_rows(str(SHARED / "mix.jsonl.gz"))
    assert len(mix) == 15_315
    assert {tuple(m["role"] for m in row) for row in mix["messages"]} == {("user", "assistant")}


TABLE = pa.BufferOutputStream()
pq.write_table(pa.table({"prompt": ["x"], "response": ["y"]}), TABLE)
NO_UNICODE = TABLE.getvalue().to_pybytes().replace(b"prompt", b"pr\xefmpt")
BAD_FILES = {
    "bad.jsonl": (b'{"prompt": "a", "response": "b"}\n{"prompt": \n', "line 2 is not JSON"),
    "bad.json": (b'[{"prompt": "a"},\n{"prompt": }]', "line 2 is not JSON"),
    "scalar.jsonl": (b'"text"\n', "line 1 holds a str, expected an object"),
    "list.json": (b"[1, 2]", "item 0 holds a int, expected an object"),
    "latin.jsonl": ('{"prompt": "é"}\n'.encode("latin-1"), "line 1 is not UTF-8"),
    "latin.csv": ("prompt,response\na,é\n".encode("latin-1"), "line 2 is not UTF-8"),
    "half.jsonl": (b'{"prompt": "a"}\n{"prompt": "\\ud83d"}\n', "line 2 holds half a surrogate"),
    "short.csv": (b"prompt,response\na\n", "line 2 has 1 values, the header 2"),
    "open.csv": (b'prompt,response\na,"b\n', "line 2 is not CSV"),
    "cut.jsonl.gz": (gzip.compress(b'{"prompt": "a"}\n' * 9)[:-9], "broken gzip file"),
    "not.jsonl.gz": (b'{"prompt": "a"}\n', "broken gzip file"),
    "not.parquet": (b"PAR1 nothing", "cannot be read"),
    "not.parquet.gz": (b"nothing", "broken gzip file"),
    "empty.jsonl": (b"", "holds no rows; leave it out, or write it again"),
    "empty.json": (b"[]", "holds no rows"),
    "empty.csv": (b"prompt,response\n", "holds no rows"),
    "data.txt": (b"text", "unknown suffix"),
    "other.jsonl": (b'{"a": "x", "b": "y"}\n', "columns a, b fit no known schema"),
    "role.jsonl": (b'{"messages": [{"role": ["x"], "content": "x"}]}\n', "has role .*; known are"),
    "huge.jsonl": (
        b'{"prompt": "x", "response": 1180591620717411303424}\n{"prompt": "y", "response": "z"}\n',
        "row 0 .* 'response' holds a float",
    ),
    "name.parquet": (NO_UNICODE, "cannot be read"),
    "number.jsonl": (b'{"prompt": "x", "response": 5}\n', "row 0 .* 'response' holds a int"),
}


def assert_one_line(error: pytest.ExceptionInfo) -> None:
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_one_line_that_says_where(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_rows(str(tmp_path / name))
    assert_one_line(error)
    assert name in str(error.value)


def test_parquet_without_rows_and_folder_without_data(tmp_path):
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="holds no rows"):
        load_rows(str(tmp_path / "a.parquet"))
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no file with suffix"):
        load_rows(str(tmp_path / "none"))


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "/no/such/folder", "a/b/c"])
def test_missing_path_says_where_it_looked(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"; look at the path$") as error:
        load_rows(name)
    assert_one_line(error)
    where = "" if name[0] == "/" else f" in {tmp_path}"
    assert f"dataset {name} not found{where};" in str(error.value)
    Path("missed.jsonl").touch()
    with pytest.raises(InputError, match=r"not found in .*; did you mean missed\.jsonl\?"):
        load_rows("missd.jsonl")


def test_hub_name_without_a_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="hub; give a local file or directory") as error:
        load_rows("nobody/nothing@subset")
    assert_one_line(error)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("", {}, "no dataset is named"),
        ("{a},{a}", {"probs": "0.5"}, "1 probabilities .* for 2 datasets"),
        ("{a},{a}", {"probs": "0.5,0.6"}, "sum to 1"),
        ("{a},{a}", {"probs": "1.5,-0.5"}, "must be positive"),
        ("{a},{a}", {"probs": "half,half"}, "not comma-separated numbers"),
        ("{a}", {"max_samples": 0}, "max_samples must be at least 1, got 0"),
        ("{a}", {"input_key": "question"}, "no column 'question'"),
        ("{a}", {"output_key": "response"}, "needs an input_key"),
    ],
)
def test_bad_arguments(tmp_path, names, options, message):
    path = write(tmp_path / "a.jsonl", records())
    with pytest.raises(InputError, match=message) as error:
        load_rows(names.format(a=path), **options)
    assert_one_line(error)
