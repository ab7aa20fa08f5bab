"""Rows that carry more than a question and its answer: rendered whole, or left out and counted."""

import json
from importlib.resources import files
from itertools import groupby

import datasets
import pytest
from test_data_tokens import CHAT, MARKED, byte_level, templated

from seal.datasets import load_rows, row_id, tokenize_rows
from seal.errors import InputError

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "tides",
            "description": "high water of a day",
            "parameters": {
                "type": "object",
                "properties": {"port": {"type": "string"}, "day": {"type": "integer"}},
            },
        },
    }
]
CALL = {"type": "function", "function": {"name": "tides", "arguments": {"port": "Brest"}}}
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def template_of(model: str) -> str:
    """A chat template as its model has it, from the copies that TRL keeps."""
    pytest.importorskip("trl")
    return files("trl").joinpath(f"chat_templates/{model}.jinja").read_text()


def turn(role: str, content, **more) -> dict:
    return {"role": role, "content": content, **more}


def load(tmp_path, *records, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_rows(str(path), **options)


def learned(rows, template: str | None = None, **options) -> list[str]:
    """Text of each row; what is learned stands between « and »."""
    tokenizer = templated(byte_level(), template)
    options = {"max_len": 3_000, "apply_chat_template": template is not None} | options
    data, texts = tokenize_rows(rows, tokenizer, **options), []
    for row in data.rows:
        pairs = zip(row["input_ids"], row["supervised"], strict=True)
        parts = [
            (flag, tokenizer.decode([token for token, _ in group]))
            for flag, group in groupby(pairs, key=lambda pair: pair[1])
        ]
        texts.append("".join(f"«{text}»" if flag else text for flag, text in parts))
    return texts


def skipped(rows, template: str | None = None, **options) -> dict[str, int]:
    options = {"max_len": 3_000, "apply_chat_template": template is not None} | options
    return tokenize_rows(rows, templated(byte_level(), template), **options).skipped


def test_a_system_column_is_a_message(tmp_path):
    records = [
        {"instruction": "Name a sea.", "output": "La mer.", "system": f"Speak {language}."}
        for language in ("French", "like a sailor")
    ]
    rows = load(tmp_path, *records)
    assert len(set(rows["id"])) == 2
    text = "Speak French.\nHuman: Name a sea.\nAssistant: «La mer.</s>»"
    assert learned(rows)[0] == text
    silent = "{% for m in messages if m.role != 'system' %}" + CHAT.partition("%}")[2]
    rows = load(tmp_path, *records, *({"prompt": f"{i}?", "response": "i"} for i in range(2)))
    assert skipped(rows, silent) == {"system not rendered": 2}


THOUGHTS = [
    {"messages": [turn("user", "3*3?"), turn("assistant", "9", reasoning_content=thought)]}
    for thought in ("three threes", "nine, as squares go")
]


def test_a_thought_is_rendered_or_its_row_left_out(tmp_path):
    plain = {"prompt": "1+1?", "response": "2"}
    rows = load(tmp_path, *THOUGHTS)
    assert len({*rows["id"], row_id([turn("user", "3*3?"), turn("assistant", "9")])}) == 3
    assert rows["id"][0] == row_id(THOUGHTS[0]["messages"])
    written = learned(rows, template_of("qwen3"))
    assert written[1].endswith("«<think>\nnine, as squares go\n</think>\n\n9<|im_end|>»\n")
    rows = load(tmp_path, *THOUGHTS, plain)
    for template in (None, CHAT, MARKED, template_of("llama3")):
        assert skipped(rows, template) == {"reasoning_content not rendered": 2}
    with pytest.raises(InputError, match=r"all 2 rows are skipped \(2 reasoning_content not rend"):
        learned(load(tmp_path, *THOUGHTS))


def test_tool_calls_are_learned_where_the_template_takes_them(tmp_path):
    text = {**CALL, "function": {"name": "tides", "arguments": '{"port": "Brest"}'}}
    records = [
        {
            "messages": [
                turn("user", "High water at Brest?"),
                turn("assistant", content, tool_calls=[call]),
                turn("tool", "at 14:05"),
                turn("assistant", "Five past two."),
            ],
            "tools": tools,
        }
        for content, call, tools in (
            ("", CALL, TOOLS),
            (None, text, json.dumps(TOOLS)),
            ("", CALL, None),
        )
    ]
    other = {"messages": [turn("user", "Hi"), turn("assistant", "", tool_calls=[CALL["function"]])]}
    rows = load(tmp_path, *records, other)
    ids = rows["id"]
    assert ids[0] == ids[1] == row_id(records[0]["messages"], TOOLS)  # however it is written
    assert ids[2] == row_id(records[2]["messages"]) and len(set(ids)) == 3
    call = (
        '«<tool_call>\n{"name": "tides", "arguments": {"port": "Brest"}}\n</tool_call><|im_end|>»'
    )
    for written in learned(rows, template_of("qwen2_5"))[:3]:
        assert call in written and "«Five past two.<|im_end|>»" in written
        assert written.count("«") == 2 and '"port": {"type"' not in written.partition("«")[2]
    assert "high water of a day" in learned(rows, template_of("qwen2_5"))[0]
    assert "tides" in learned(rows, template_of("llama3_1"))[0]
    rows = load(tmp_path, *records, other, {"prompt": "1+1?", "response": "2"})
    for template in (None, CHAT):
        assert skipped(rows, template) == {"tool_calls not rendered": 4}


def test_a_template_that_folds_the_tool_into_the_turn_teaches_no_tool(tmp_path):
    record = {
        "messages": [
            turn("user", "High water?"),
            turn("assistant", "", tool_calls=[CALL]),
            turn("tool", "at 14:05"),
            turn("assistant", "Five past two."),
        ],
        "tools": TOOLS,
    }
    rows = load(tmp_path, record, *({"prompt": f"{i}?", "response": "i"} for i in range(19)))
    assert list(skipped(rows, template_of("gemma4"))) == ["rewritten by the chat template"]


def test_keys_of_other_rows_are_not_filled_in(tmp_path):
    calls = [{"port": "Brest"}, {"day": 3}]
    records = [
        {
            "messages": [
                turn("user", "?"),
                turn("assistant", "", tool_calls=[{"function": {"name": "t", "arguments": a}}]),
            ]
        }
        for a in calls
    ]
    together = load(tmp_path, *records)
    datasets.Dataset.from_list(records).to_parquet(tmp_path / "rows.parquet")  # fills in nulls
    assert list(together["id"]) == list(load_rows(str(tmp_path / "rows.parquet"))["id"])
    assert list(together["id"]) == [load(tmp_path, record)["id"][0] for record in records]


@pytest.mark.parametrize("zero", [{"weight": 0}, {"loss_mask": 0}, {"train": False}, {"loss": 0.0}])
def test_turns_of_no_weight_are_read_and_not_learned(tmp_path, zero):
    (key,) = zero
    messages = [
        turn("user", "Hi", **zero),
        turn("assistant", "NO", **zero),
        turn("user", "Again"),
        turn("assistant", "yes", **{key: 1}),
    ]
    rows = load(tmp_path, {"messages": messages}, {"messages": messages[:2]})
    assert learned(rows) == ["Human: Hi\nAssistant: NO\nHuman: Again\nAssistant:« yes</s>»"]
    assert skipped(rows) == {"empty response": 1}
    for template in (CHAT, MARKED):
        (text,) = learned(rows, template)
        assert "<|assistant|>NO<|end|>" in text and "«yes<|end|>»" in text
    every = [turn(message["role"], message["content"]) for message in messages]
    assert rows["id"][0] != row_id(every)
    with pytest.raises(InputError, match="weight not rendered"):
        learned(rows, pretrain_mode=True)


def test_plain_text_is_learned_whole_under_pretrain_mode(tmp_path):
    texts = ["A harbour at dusk.", "Its lamps are lit."]
    rows = load(tmp_path, *({"text": text} for text in texts))
    assert learned(rows, pretrain_mode=True) == [f"«{text}</s>»" for text in texts]
    with pytest.raises(InputError, match="2 plain text without --pretrain_mode"):
        learned(rows)


def test_parts_of_text_are_joined_and_others_leave_the_row_out(tmp_path):
    parts = [{"type": "text", "text": "Name a port."}, {"type": "text", "text": "In one word."}]
    picture = [*parts, {"type": "image_url", "image_url": {"url": "x"}}]
    answer = turn("assistant", "Brest.")
    rows = load(tmp_path, *({"messages": [turn("user", p), answer]} for p in (parts, picture)))
    assert learned(rows) == ["Human: Name a port.\nIn one word.\nAssistant: «Brest.</s>»"]
    assert skipped(rows) == {"content part of type image_url": 1}


def test_a_name_is_rendered_or_its_row_left_out(tmp_path):
    record = {"messages": [turn("user", "Hi", name="Ann"), turn("assistant", "Hello")]}
    rows = load(tmp_path, record, {"prompt": "Hi", "response": "Hello"})
    named = CHAT.replace("m['role'] + '|>'", "m['role'] + (m.name or '') + '|>'")
    assert "<|userAnn|>Hi<|end|>" in learned(rows, named)[0]
    for template in (None, CHAT):
        assert skipped(rows, template) == {"name not rendered": 1}


THINKING = [
    turn("user", "Hi"),
    turn("assistant", "<think>\nto greet\n</think>\n\nHello"),
    turn("user", "Bye"),
    turn("assistant", "<think>\nto part\n</think>\n\nCiao"),
]


@pytest.mark.parametrize(
    ("model", "first", "last"),
    [
        ("qwen3", "«Hello<|im_end|>»", "«<think>\nto part\n</think>\n\nCiao<|im_end|>»"),
        ("qwen3_5_think", "«Hello<|im_end|>»", "<think>\n«to part\n</think>\n\nCiao<|im_end|>»"),
        ("glm4moe", "«\n<think></think>\nHello»", "«\n<think>to part</think>\nCiao»"),
        (
            "qwen2_5",
            "«<think>\nto greet\n</think>\n\nHello<|im_end|>»",
            "to part\n</think>\n\nCiao",
        ),
    ],
)
def test_thinking_turns_are_learned_as_the_template_renders_them(tmp_path, model, first, last):
    rows = load(tmp_path, {"messages": THINKING}, {"prompt": "A tree.", "response": "Oak."})
    text, other = learned(rows, template_of(model))
    assert first in text and last in text and "Oak." in other
    thoughts = [m["content"].partition("\n</think>")[0].partition("\n")[2] for m in THINKING[1::2]]
    contents = [m["content"].partition("</think>\n\n")[2] for m in THINKING[1::2]]
    apart = [
        turn("assistant", c, reasoning_content=t) for c, t in zip(contents, thoughts, strict=True)
    ]
    if model != "qwen2_5":
        same = [THINKING[0], apart[0], THINKING[2], apart[1]]
        assert learned(load(tmp_path, {"messages": same}), template_of(model)) == [text]


@pytest.mark.parametrize("model", ["deepseekv3", "deepseek_r1_distill"])
def test_a_generation_prompt_that_opens_a_thought(tmp_path, model):
    """A finished turn of such a template is the answer alone."""
    template, closed = template_of(model), "<think>\nthree threes\n</think>\n\n9"
    plain, turns = {"prompt": "3*3?", "response": "9"}, THINKING[:2] + THINKING[:1]
    rows = load(tmp_path, plain, {"messages": [*turns, turn("assistant", "Ciao")]})
    one, two = learned(rows, template)
    assert one.endswith("3*3?<｜Assistant｜>«9<｜end▁of▁sentence｜>»")
    assert "Hello<｜end▁of▁sentence｜>»<｜User｜>" in two and "greet" not in two
    assert two.endswith("<｜Assistant｜>«Ciao<｜end▁of▁sentence｜>»")
    rows = load(tmp_path, plain, plain | {"response": closed})
    assert skipped(rows, template) == {"thought not rendered": 1}


def test_an_answer_that_its_lead_in_holds_is_found_behind_it(tmp_path):
    rows = load(tmp_path, {"prompt": "Say think.", "response": "think"})
    (text,) = learned(rows, template_of("qwen3"))
    assert text.endswith("«<think>\n\n</think>\n\nthink<|im_end|>»\n")


def test_odd_rows_are_left_out_by_reason_and_named_and_many_end_the_run(tmp_path, caplog):
    good = [{"prompt": f"Count {i}.", "response": str(i)} for i in range(98)]
    odd = [
        {"messages": [turn("system", "Short."), turn("user", "?"), turn("assistant", "1")]},
        {"messages": [turn("user", "a"), turn("user", "b"), turn("assistant", "c")]},
    ]
    rows = load(tmp_path, *good, *odd)
    assert skipped(rows, STRICT) == {"refused by the chat template": 2}
    told = "row 98 (from 0): the chat template refuses the conversation (roles must alternate)"
    assert [told in message and "2 of 100 rows" in message for message in caplog.messages] == [True]
    with pytest.raises(InputError, match=r"row 30 .*2 of 32 rows are refused .* more than 5%"):
        skipped(load(tmp_path, *good[:30], *odd), STRICT)


def test_a_tenth_left_out_is_a_warning_with_the_reasons_first(tmp_path, caplog):
    good = [{"prompt": "p", "response": str(i)} for i in range(16)]
    bad = [{"prompt": "", "response": "r"}, *({"prompt": "p", "response": ""} for _ in range(3))]
    skipped(load(tmp_path, *good, *bad))
    assert caplog.messages == ["3 empty response, 1 empty prompt: of 20 rows 16 stay"]
    caplog.clear()
    skipped(load(tmp_path, *good, *bad[:1]))
    assert not caplog.messages
