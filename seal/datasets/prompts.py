"""Records to conversations: the one table of the schemas, and of the keys, this package reads.

A conversation is a list of messages, {"role": "system" | "user" | "assistant" | "tool", "content":
text}, or a single text of role "text". A message may hold the keys of CARRIED as well, and a row
`tools`. Columns that no schema names (a provenance, a source, a category) are never read.
"""

import difflib
import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import datasets
import numpy as np

from seal.datasets.cache import cached_map, fingerprint
from seal.datasets.identity import row_id
from seal.datasets.skips import count_skips
from seal.errors import InputError

logger = logging.getLogger(__name__)

Messages = list[dict]

# `extra` is JSON of what does not fit `messages`: {"turns": [a message's keys], "tools": [...]}.
# `skip` says why a row cannot be read. Both are there only where a row has them.
_TEXT = datasets.Value("string")
FEATURES = datasets.Features(
    messages=datasets.List({"role": _TEXT, "content": _TEXT}),
    id=_TEXT,
    origin=_TEXT,
    origin_row=datasets.Value("int64"),
    extra=_TEXT,
    skip=_TEXT,
)
OPTIONAL = ("extra", "skip")
GIVEN = "given"  # the origin of rows that come without a name

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    "text": "text",
}
# What a message may hold beside its text: a chat template renders it, or the row is skipped.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
CARRIED = (*THOUGHTS, "tool_calls", "tool_call_id", "name")
# 0 or false in one of these: the turn is not learned.
_WEIGHTS = ("weight", "loss_mask", "loss_scale", "loss", "train")
# Columns read beside those of any schema.
_BESIDE = ("system", "system_prompt", "tools")
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):[ ]?")
_FIRST = 100  # rows looked at for keys that nothing reads
_VERSION = 3  # of what is written to the cache


class NotText(Exception):
    """A row holds no text, or a part that is none; the message says which."""


class Schema(NamedTuple):
    """A way to write a conversation as a record.

    Attributes:
        columns: The columns that a dataset must have to be read this way.
        optional: Columns that are read where they are there.
        convert: (record, *columns) -> messages.
    """

    columns: tuple[str, ...]
    optional: tuple[str, ...]
    convert: Callable[..., Messages]


def _message(role: str, value: object, column: str) -> Messages:
    """One message; a missing text is an empty one, a number is refused rather than printed."""
    if isinstance(value, list):
        value = "\n".join(_part(part) for part in value)
    if value is not None and not isinstance(value, str):
        raise InputError(f"column {column!r} holds a {type(value).__name__}, expected text")
    return [{"role": role, "content": value or ""}]


def _part(part: object) -> str:
    """The text of a content part."""
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return part["text"]
    if not isinstance(part, str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise NotText(f"content part of type {kind}")
    return part


def _chat(turns: list | None, column: str) -> Messages:
    """OpenAI (role, content) or ShareGPT (from, value) messages."""
    if turns is not None and not isinstance(turns, list):
        raise InputError(f"column {column!r} holds a {type(turns).__name__}, expected messages")
    messages = []
    for turn in turns or []:
        if not isinstance(turn, dict) or not turn.keys() & {"role", "from"}:
            raise InputError(f"column {column!r} holds a message without a role (or from)")
        role = turn.get("role") or turn.get("from")
        if not isinstance(role, str) or role not in _ROLES:
            raise InputError(f"column {column!r} has role {role!r}; known are {', '.join(_ROLES)}")
        content = turn.get("content") if turn.get("content") is not None else turn.get("value")
        (message,) = _message(_ROLES[role], content, column)
        if len(turn) > 2:
            message |= {key: _carried(key, turn[key]) for key in CARRIED if turn.get(key)}
            silent = any(turn.get(key) in (0, False) for key in _WEIGHTS)
            message |= {"weight": 0} if silent and message["role"] == "assistant" else {}
        messages.append(message)
    return messages


def _carried(key: str, value: object) -> object:
    if key != "tool_calls":
        return _message("", value, key)[0]["content"]
    return [_call(call) for call in _objects(value, key)]


def _call(call: dict) -> dict:
    """A tool call as chat templates take it: its arguments an object, not the text of one."""
    function = {"name": "", "arguments": {}} | call.get("function", call)
    named = {key: function[key] for key in ("name", "arguments")}
    if isinstance(named["arguments"], str):
        with suppress(ValueError):
            named["arguments"] = json.loads(named["arguments"])
    own = {"id": call["id"]} if "id" in call else {}
    return own | {"type": "function", "function": named}


def _objects(value: object, column: str) -> list[dict]:
    """A list of objects, or the JSON of one, without the nulls that Parquet fills in."""
    found = _parsed(value or "[]", column) if isinstance(value, str) else value or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InputError(f"column {column!r} holds no list of objects")
    return _without_nulls(found)


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _parsed(text: str, column: str) -> list:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"column {column!r} holds a text that is not JSON") from error
    return value if isinstance(value, list) else [value]


def _transcript(text: str, column: str) -> Messages:
    """The text of hh-rlhf: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    before, *parts = _TRANSCRIPT.split(text)
    if before or (text and not parts):
        raise InputError(f"column {column!r} is no transcript: it starts with {before[:20]!r}")
    pairs = zip(parts[0::2], parts[1::2], strict=True)
    return [{"role": _ROLES[name.lower()], "content": content} for name, content in pairs]


def _turns(role: str, value: object, column: str) -> Messages:
    return _chat(value, column) if isinstance(value, list) else _message(role, value, column)


def _messages(record: dict, column: str) -> Messages:
    """A whole conversation in one column: messages, their JSON, or a transcript."""
    value = record[column]
    if not isinstance(value, str):
        return _chat(value, column)
    if value.lstrip().startswith("["):
        return _chat(_parsed(value, column), column)
    return _transcript(value, column)


def _pair(record: dict, prompt: str, reply: str) -> Messages:
    """A prompt and its reply; either may be messages, and a reply may repeat its prompt."""
    before = _turns("user", record[prompt], prompt)
    after = _turns("assistant", record[reply], reply)
    return after if after and after[0]["role"] != "assistant" else before + after


def _instruction(record: dict, instruction: str, output: str) -> Messages:
    """Alpaca, Dolly and LIMA: an instruction with its input on the next line, after a history."""
    messages = []
    for turn in record.get("history") or []:
        if not isinstance(turn, list) or len(turn) != 2:
            raise InputError("column 'history' holds no list of [question, answer] pairs")
        messages += _message("user", turn[0], "history") + _message("assistant", turn[1], "history")
    prompt = [
        message["content"]
        for column in (instruction, "input", "context")
        for message in _message("user", record.get(column), column)
    ]
    messages += _message("user", "\n".join(text for text in prompt if text), instruction)
    return messages + _message("assistant", record[output], output)


def _plain(record: dict, column: str) -> Messages:
    """Text without turns, for `pretrain_mode`."""
    return _message("text", record[column], column)


# The first schema whose columns a row fills reads it.
SCHEMAS = (
    Schema(("messages",), (), _messages),
    Schema(("conversations",), (), _messages),
    Schema(("prompt", "response"), (), _pair),
    Schema(("prompt", "completion"), (), _pair),
    Schema(("prompt", "chosen"), (), _pair),
    Schema(("question", "response"), (), _pair),
    Schema(("question", "answer"), (), _pair),
    Schema(("instruction", "output"), ("input", "history"), _instruction),
    Schema(("instruction", "response"), ("context",), _instruction),
    Schema(("chosen",), (), _messages),
    Schema(("text",), (), _plain),
)

# What columns of no schema are called in part, a prompt's and a response's.
_PROMPTS = ("prompt", "query", "question", "instruction", "input", "ask")
_RESPONSES = ("response", "reply", "answer", "completion", "output", "chosen")


def find_schemas(
    columns: list[str],
    *,
    input_key: str | None = None,
    output_key: str | None = None,
    origin: str = GIVEN,
) -> list[Schema]:
    """The schemas that rows with some of `columns` can be of; the first that a row fills reads it.

    `input_key` with `output_key` names the columns of a pair; alone it names a column that holds
    whole conversations. `origin` is the dataset's name, for messages.

    Raises:
        InputError: A key names no column, or no schema fits.
    """
    if output_key and not input_key:
        raise InputError(f"output_key {output_key!r} needs an input_key beside it")
    keys = tuple(key for key in (input_key, output_key) if key)
    for key in keys:
        if key not in columns:
            close = difflib.get_close_matches(key, columns, n=1)
            hint = f"did you mean {close[0]}?" if close else _named(origin, columns, keys)
            raise InputError(f"no column {key!r}; the columns are {', '.join(columns)}; {hint}")
    if keys:
        return [Schema(keys, (), _pair if output_key else _messages)]
    fitting = [schema for schema in SCHEMAS if set(schema.columns) <= set(columns)]
    if not fitting:
        known = "; ".join(" + ".join(schema.columns) for schema in SCHEMAS)
        hint = _named(origin, columns, ()) + ", or rename them"
        if len(columns) == 1:
            hint = f"the responses are missing; if {columns[0]} holds whole conversations, " + hint
        raise InputError(f"columns {', '.join(columns)} fit no known schema ({known}); {hint}")
    return fitting


def _named(origin: str, columns: list[str], keys: tuple[str, ...]) -> str:
    """How to name the columns of one dataset; of another, where these need no names."""
    fitting = [schema for schema in SCHEMAS if set(schema.columns) <= set(columns)]
    if len(columns) == 1 and not fitting:
        names = columns
    elif not fitting:
        sides = {"PROMPT": _PROMPTS, "RESPONSE": _RESPONSES}
        names = [
            next((name for name in columns if any(word in name.lower() for word in words)), side)
            for side, words in sides.items()
        ]
    elif fitting[0].convert is _plain or {*fitting[0].optional} & {*columns}:  # names would lose it
        origin, names = "FILE", keys
    else:
        names = fitting[0].columns
    if origin == GIVEN:
        return "name them with input_key and output_key"
    return f"name a dataset's columns behind it, as {':'.join((origin, *names))}"


def to_messages(
    raw: datasets.Dataset, origin: str, input_key: str | None, output_key: str | None
) -> datasets.Dataset:
    """Rows of `raw` as the columns of FEATURES, those of OPTIONAL where needed; cached.

    Raises:
        InputError: No schema fits, or too many rows cannot be read.
    """
    try:
        keys = {"input_key": input_key, "output_key": output_key}
        schemas = find_schemas(raw.column_names, **keys, origin=origin)
    except InputError as error:
        raise InputError(f"dataset {origin}: {error}") from None
    whole_one = [all(raw.data[name].null_count == 0 for name in s.columns) for s in schemas]
    schemas = schemas[: whole_one.index(True) + 1] if True in whole_one else schemas
    wanted = {name for schema in schemas for name in schema.columns + schema.optional}
    read = [name for name in raw.column_names if name in wanted or name in _BESIDE]
    unread = _unread(raw, read)
    if unread:
        logger.info("%s: not read: %s", origin, ", ".join(unread))
    rows = cached_map(
        raw.select_columns(read),
        _convert,
        fn_kwargs={"schemas": schemas, "origin": origin},
        new_fingerprint=fingerprint(
            "messages", _VERSION, raw._fingerprint, origin, input_key, output_key
        ),
        features=FEATURES,
        num_proc=None,
        desc=f"Reading {origin}",
    )
    count_skips(rows.data["skip"], ("unreadable",), f"dataset {origin}, ")
    empty = [name for name in OPTIONAL if rows.data[name].null_count == len(rows)]
    return rows.remove_columns(empty)


def _unread(raw: datasets.Dataset, read: list[str]) -> list[str]:
    """Columns that nothing reads, and keys of messages, as far as the first rows show them."""
    known = {"role", "from", "content", "value", *CARRIED, *_WEIGHTS, "type", "function"}
    inner = {
        f"{name}[].{key}": None
        for name, values in raw[:_FIRST].items()
        if name in read
        for value in values
        if isinstance(value, list)
        for turn in value
        if isinstance(turn, dict)
        for key in turn
        if key not in known and turn[key] is not None
    }
    return [name for name in raw.column_names if name not in read] + [*inner]


def _convert(batch: dict, indices: list[int], schemas: list[Schema], origin: str) -> dict:
    result = {"messages": [], "id": [], "extra": [], "skip": []}
    for values in zip(*batch.values(), strict=True):
        record = dict(zip(batch, values, strict=True))
        messages, tools, skip = [], None, None
        try:
            schema = _schema_of(record, schemas)
            messages = _with_system(record, schema.convert(record, *schema.columns))
            tools = _objects(record.get("tools"), "tools")
        except InputError as error:
            skip = f"unreadable: {error}"
        except NotText as part:
            skip = str(part)
        messages = [] if skip else messages
        extra = None
        if tools or any(len(message) > 2 for message in messages):
            extra = json.dumps({"turns": [_beside(m) for m in messages], "tools": tools})
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        row = (plain, row_id(messages, tools), extra, skip)
        for column, value in zip(result.values(), row, strict=True):
            column.append(value)
    return result | {"origin": [origin] * len(indices), "origin_row": indices}


def _schema_of(record: dict, schemas: list[Schema]) -> Schema:
    """The first schema whose columns a record fills, or else the first of which it has anything."""
    if len(schemas) == 1:
        return schemas[0]
    filled = [[record[name] is not None for name in schema.columns] for schema in schemas]
    for fits in (all, any):
        for schema, there in zip(schemas, filled, strict=True):
            if fits(there):
                return schema
    raise NotText("nothing in a known column")


def _with_system(record: dict, messages: Messages) -> Messages:
    """`messages` after the system prompt of a column of its own, where there is one."""
    system = _message("system", record.get("system") or record.get("system_prompt"), "system")
    return messages if not system[0]["content"] or system == messages[:1] else system + messages


def readable(rows: datasets.Dataset) -> datasets.Dataset:
    """`rows` without those that could not be read."""
    if "skip" not in rows.column_names:
        return rows
    stay = rows.select_columns(["skip"]).with_format("arrow")[:]["skip"].is_null()
    return rows.select(np.flatnonzero(stay)).remove_columns("skip")


def _beside(message: dict) -> dict:
    return {key: value for key, value in message.items() if key not in ("role", "content")}


def whole(messages: Messages, extra: str | None) -> tuple[Messages, list[dict] | None]:
    """The messages of a row with all their keys, and the row's tools.

    Args:
        messages: Column `messages` of `load_rows`.
        extra: Column `extra`, None where there is none.
    """
    if extra is None:
        return messages, None
    parts = json.loads(extra)
    turns = [m | keys for m, keys in zip(messages, parts["turns"], strict=True)]
    return turns, parts["tools"]
