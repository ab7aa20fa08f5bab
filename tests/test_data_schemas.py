"""Every schema reads to the same conversations, and what fits none says what was seen."""

import json
from pathlib import Path

import datasets
import pytest

from seal.datasets import load_rows, row_id
from seal.datasets.prompts import SCHEMAS, find_schemas
from seal.errors import InputError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.exists(), reason="needs the research data in ../shared/data"
)

S, U, A = "system", "user", "assistant"
ONE = ((U, "q"), (A, "a"))
SYSTEM = ((S, "s"), *ONE)
TWO = ((U, "q1"), (A, "a1"), (U, "q2"), (A, "a2"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def openai(turns):
    return [{"role": role, "content": content} for role, content in turns]


def sharegpt(turns):
    names = {S: "system", U: "human", A: "gpt"}
    return [{"from": names[role], "value": content} for role, content in turns]


def load(tmp_path, *records, **options):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_rows(str(path), **options)


def turns_of(messages):
    return tuple((message["role"], message["content"]) for message in messages)


SAME = {
    "prompt/response": ({"prompt": "q", "response": "a"}, ONE),
    "prompt/completion": ({"prompt": "q", "completion": "a"}, ONE),
    "prompt/chosen": ({"prompt": "q", "chosen": "a", "rejected": "r"}, ONE),
    "question/response": ({"question": "q", "response": "a"}, ONE),
    "empty system": ({"system_prompt": "", "question": "q", "response": "a"}, ONE),
    "system": ({"system_prompt": "s", "question": "q", "response": "a"}, SYSTEM),
    "alpaca": ({"instruction": "q", "input": "", "output": "a"}, ONE),
    "alpaca, no input": ({"instruction": "q", "output": "a"}, ONE),
    "dolly": ({"instruction": "q", "context": "", "response": "a", "category": "c"}, ONE),
    "messages": ({"messages": openai(SYSTEM)}, SYSTEM),
    "messages, two turns": ({"messages": openai(TWO), "prompt": "q1"}, TWO),
    "sharegpt": ({"conversations": sharegpt(SYSTEM)}, SYSTEM),
    "sharegpt, role/content": ({"conversations": openai(TWO)}, TWO),
    "history": ({"instruction": "q2", "output": "a2", "history": [["q1", "a1"]]}, TWO),
    "transcript": (
        {"chosen": "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant: a2", "rejected": "r"},
        TWO,
    ),
    "trl prompt/completion": ({"prompt": openai(TWO[:3]), "completion": openai(TWO[3:])}, TWO),
    "trl chosen alone": ({"chosen": openai(TWO), "rejected": openai(TWO)}, TWO),
    "prompt repeated in chosen": ({"prompt": "q", "chosen": openai(ONE)}, ONE),
    "question/answer": ({"question": "q", "answer": "a"}, ONE),
    "system column": ({"prompt": "q", "response": "a", "system": "s"}, SYSTEM),
    "system beside messages": ({"messages": openai(ONE), "system": "s"}, SYSTEM),
    "system twice": ({"conversations": sharegpt(SYSTEM), "system": "s"}, SYSTEM),
    "alpaca, system": ({"instruction": "q", "output": "a", "system": "s"}, SYSTEM),
    "messages as JSON": ({"messages": json.dumps(openai(TWO))}, TWO),
    "content parts": (
        {"messages": [{"role": U, "content": [{"type": "text", "text": "q"}]}, *openai(ONE[1:])]},
        ONE,
    ),
    "plain text": ({"text": "t"}, (("text", "t"),)),
    "messages then text": ({"prompt": openai(TWO[:3]), "response": "a2"}, TWO),
}


@pytest.mark.parametrize("name", SAME)
def test_schema(tmp_path, name):
    record, turns = SAME[name]
    (row,) = load(tmp_path, record)
    assert turns_of(row["messages"]) == turns
    assert row["id"] == row_id(openai(turns))


def test_input_goes_on_the_next_line(tmp_path):
    rows = load(tmp_path, {"instruction": "q", "input": "x\ny", "output": "a"})
    assert turns_of(rows[0]["messages"]) == ((U, "q\nx\ny"), (A, "a"))


def test_transcript_keeps_its_text(tmp_path):
    text = "\n\nHuman:  two spaces \n\nAssistant: a\n\nlist: 1\n\nHuman: \n\nAssistant:"
    rows = load(tmp_path, {"chosen": text})
    expected = ((U, " two spaces "), (A, "a\n\nlist: 1"), (U, ""), (A, ""))
    assert turns_of(rows[0]["messages"]) == expected


def test_keys(tmp_path):
    record = {"ask": "q", "say": "a", "prompt": "x", "response": "y", "talk": sharegpt(TWO)}
    rows = load(tmp_path, record, input_key="ask", output_key="say")
    assert turns_of(rows[0]["messages"]) == ONE
    rows = load(tmp_path, record, input_key="talk")
    assert turns_of(rows[0]["messages"]) == TWO


def test_missing_parts_keep_the_row(tmp_path):
    rows = load(tmp_path, {"prompt": None, "response": "a"}, {"prompt": "q"})
    assert [turns_of(m) for m in rows["messages"]] == [((U, ""), (A, "a")), ((U, "q"), (A, ""))]
    rows = load(tmp_path, {"messages": openai(ONE)}, {"messages": None})
    assert [turns_of(m) for m in rows["messages"]] == [ONE, ()]


BAD = {
    "number": ({"prompt": "q", "response": 5}, "column 'response' holds a int, expected text"),
    "flag": ({"instruction": True, "output": "a"}, "column 'instruction' holds a bool"),
    "object": ({"prompt": {"text": "q"}, "response": "a"}, "column 'prompt' holds a dict"),
    "role": (
        {"messages": [{"role": "narrator", "content": "q"}]},
        "has role 'narrator'; known are",
    ),
    "no calls": (
        {"messages": [{"role": A, "content": "", "tool_calls": "weather"}]},
        "'tool_calls' holds a text that is not JSON",
    ),
    "no tools": ({"messages": openai(ONE), "tools": 3}, "'tools' holds no list of objects"),
    "no JSON": ({"messages": "[{]"}, "holds a text that is not JSON"),
    "no role": ({"messages": [{"content": "q"}]}, "a message without a role"),
    "no messages": ({"conversations": 3}, "'conversations' holds a int, expected messages"),
    "history": ({"instruction": "q", "output": "a", "history": ["q"]}, "no list of .* pairs"),
    "no transcript": ({"chosen": "Human: q"}, "'chosen' is no transcript"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_record_names_its_row(tmp_path, name):
    record, message = BAD[name]
    with pytest.raises(InputError, match=rf"data\.jsonl, row 0 \(from 0\): .*{message}") as error:
        load(tmp_path, record)
    assert "\n" not in str(error.value)


def test_bad_records_among_good_ones_are_left_out_and_many_are_an_error(tmp_path, caplog):
    good = [{"prompt": "q", "response": str(i)} for i in range(2_500)]
    bad = {"prompt": "q", "response": 1}
    rows = load(tmp_path, *good[:2_400], bad, *good)
    assert len(rows) == 4_901 and rows[2_400]["messages"] == [] != rows[2_399]["messages"]
    where = "row 2400 (from 0): column 'response' holds a int, expected text; 1 of 4901 rows are"
    assert [where in message for message in caplog.messages] == [True]
    assert load(tmp_path, *good[:19], bad)["id"][19] == row_id([])
    with pytest.raises(InputError, match=r"row 18 .* 2 of 20 rows .* more than 5%"):
        load(tmp_path, *good[:18], bad, bad)


def test_unknown_columns_are_listed_with_the_known_schemas():
    with pytest.raises(InputError, match="columns comment, label fit no known schema") as error:
        find_schemas(["comment", "label"])
    for schema in SCHEMAS:
        assert " + ".join(schema.columns) in str(error.value)


@pytest.mark.parametrize(
    ("text", "keys", "told"),
    [
        (
            "query,reply,kind\na,b,c\n",
            {},
            "columns behind it, as {f}:query:reply",
        ),
        ("id,user_Query,x\n1,a,b\n", {}, " as {f}:user_Query:RESPONSE"),
        ("colour,size\na,b\n", {}, " as {f}:PROMPT:RESPONSE, or rename them"),
        ("query\na\n", {}, "the responses are missing; if query"),
        ("prompt,response\na,b\n", {"input_key": "query"}, " as {f}:prompt:response"),
        ("text\na\n", {"input_key": "query", "output_key": "reply"}, " as FILE:query:reply"),
        ("ask,answer\na,b\n", {"input_key": "query"}, " as {f}:ask:answer"),
        ("query,reply\na,b\n", {"input_key": "qury"}, "did you mean query?"),
    ],
)
def test_columns_of_ones_own_are_told_how_to_name(tmp_path, text, keys, told):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_rows(str(path), **keys)
    assert told.format(f=path) in str(error.value) and len(str(error.value)) < 600


@needs_shared
@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("alpaca.json", ("instruction", "input", "output")),
        ("dolly.jsonl", ("instruction", "context", "response")),
        ("lima_history.json", ("instruction", "input", "output")),
        ("safeinstr.json", ("instruction", "input", "output")),
    ],
)
def test_published_instruction_files(name, columns):
    text = (SHARED / "formats" / name).read_text()
    records = json.loads(text) if name.endswith("json") else map(json.loads, text.splitlines())
    instruction, extra, answer = columns
    rows = load_rows(str(SHARED / "formats" / name))
    for record, messages in zip(records, rows["messages"], strict=True):
        prompt = record[instruction] + ("\n" + record[extra] if record[extra] else "")
        assert turns_of(messages) == ((U, prompt), (A, record[answer]))


@needs_shared
def test_published_transcripts():
    path = SHARED / "formats" / "hh_rlhf.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record, messages in zip(records, load_rows(str(path))["messages"], strict=True):
        names = {U: "Human", A: "Assistant"}
        written = "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in messages)
        assert written == record["chosen"]
        assert messages[-1]["role"] == A
