"""Records to conversations: the one table of the schemas this package reads.

A conversation is a list of {"role": "system" | "user" | "assistant", "content": text}. Columns
that no schema names (a provenance, a source, a category) are never read.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import datasets

from seal.datasets.cache import cached_map, fingerprint
from seal.datasets.identity import row_id
from seal.errors import InputError

Messages = list[dict[str, str]]

FEATURES = datasets.Features(
    {
        "messages": datasets.List(
            {"role": datasets.Value("string"), "content": datasets.Value("string")}
        ),
        "id": datasets.Value("string"),
        "origin": datasets.Value("string"),
        "origin_row": datasets.Value("int64"),
    }
)

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):[ ]?")
_VERSION = 1  # of what is written to the cache


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
    if value is not None and not isinstance(value, str):
        raise InputError(f"column {column!r} holds a {type(value).__name__}, expected text")
    return [{"role": role, "content": value or ""}]


def _chat(turns: list, column: str) -> Messages:
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
        messages += _message(_ROLES[role], content, column)
    return messages


def _transcript(text: str | None, column: str) -> Messages:
    """The text of hh-rlhf: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    before, *parts = _TRANSCRIPT.split(text or "")
    if before or (text and not parts):
        raise InputError(f"column {column!r} is no transcript: it starts with {before[:20]!r}")
    roles = [_ROLES[name.lower()] for name in parts[0::2]]
    return [
        {"role": role, "content": content} for role, content in zip(roles, parts[1::2], strict=True)
    ]


def _turns(role: str, value: object, column: str) -> Messages:
    return _chat(value, column) if isinstance(value, list) else _message(role, value, column)


def _messages(record: dict, column: str) -> Messages:
    """A whole conversation in one column: messages, or a transcript."""
    value = record[column]
    return _transcript(value, column) if isinstance(value, str) else _chat(value, column)


def _pair(record: dict, prompt: str, reply: str) -> Messages:
    """A prompt and its reply; either may be messages, and a reply may repeat its prompt."""
    before = _turns("user", record[prompt], prompt)
    after = _turns("assistant", record[reply], reply)
    return after if after and after[0]["role"] != "assistant" else before + after


def _question(record: dict, question: str, response: str) -> Messages:
    """OpenOrca: a system prompt, where there is one, before the pair."""
    system = _message("system", record.get("system_prompt"), "system_prompt")
    return [m for m in system if m["content"]] + _pair(record, question, response)


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


# The first schema whose columns are all there is used.
SCHEMAS = (
    Schema(("messages",), (), _messages),
    Schema(("conversations",), (), _messages),
    Schema(("prompt", "response"), (), _pair),
    Schema(("prompt", "completion"), (), _pair),
    Schema(("prompt", "chosen"), (), _pair),
    Schema(("question", "response"), ("system_prompt",), _question),
    Schema(("instruction", "output"), ("input", "history"), _instruction),
    Schema(("instruction", "response"), ("context",), _instruction),
    Schema(("chosen",), (), _messages),
)


def find_schema(
    columns: list[str], *, input_key: str | None = None, output_key: str | None = None
) -> Schema:
    """The schema of a dataset with `columns`.

    `input_key` with `output_key` names the columns of a pair; alone it names a column that holds
    whole conversations.

    Raises:
        InputError: A key names no column, or no schema fits.
    """
    if output_key and not input_key:
        raise InputError(f"output_key {output_key!r} needs an input_key beside it")
    keys = tuple(key for key in (input_key, output_key) if key)
    for key in keys:
        if key not in columns:
            raise InputError(f"no column {key!r}; the columns are {', '.join(columns)}")
    if keys:
        return Schema(keys, (), _pair if output_key else _messages)
    for schema in SCHEMAS:
        if set(schema.columns) <= set(columns):
            return schema
    known = "; ".join(" + ".join(schema.columns) for schema in SCHEMAS)
    raise InputError(
        f"columns {', '.join(columns)} fit no known schema ({known}); "
        "name them with input_key and output_key"
    )


def to_messages(
    raw: datasets.Dataset, origin: str, *, input_key: str | None, output_key: str | None
) -> datasets.Dataset:
    """Rows of `raw` as `messages`, `id`, `origin`, `origin_row`; the work is cached."""
    try:
        schema = find_schema(raw.column_names, input_key=input_key, output_key=output_key)
    except InputError as error:
        raise InputError(f"dataset {origin}: {error}") from None
    read = [name for name in schema.columns + schema.optional if name in raw.column_names]
    name = fingerprint("messages", _VERSION, raw._fingerprint, origin, input_key, output_key)
    return cached_map(
        raw.select_columns(read),
        _convert,
        fn_kwargs={"schema": schema, "origin": origin},
        new_fingerprint=name,
        features=FEATURES,
        num_proc=None,
        desc=f"Reading {origin}",
    )


def _convert(batch: dict, indices: list[int], schema: Schema, origin: str) -> dict:
    records = [
        dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)
    ]
    messages = []
    for row, record in zip(indices, records, strict=True):
        try:
            messages.append(schema.convert(record, *schema.columns))
        except InputError as error:
            raise InputError(f"dataset {origin}, row {row} (from 0): {error}") from None
    return {
        "messages": messages,
        "id": [row_id(conversation) for conversation in messages],
        "origin": [origin] * len(records),
        "origin_row": indices,
    }
