"""Conversations to text, and which characters of that text are to be learned.

A span (start, stop) is a range of characters. Spans are found on the text, tokens only later and
once, so no response token is lost where the prompt ends.
"""

import re
from itertools import groupby, takewhile
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from seal.errors import InputError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REMEDY = "mark its turns with {% generation %}, or train without apply_chat_template"

Messages = list[dict[str, str]]


class Rendered(NamedTuple):
    """Text of one conversation and the spans of its supervised turns, in order."""

    text: str
    spans: list[tuple[int, int]]


def check_template(input_template: str) -> None:
    """Raises InputError unless `input_template` has one {} and nothing else to fill in."""
    try:
        whole = input_template.format("\0").count("\0") == 1
    except (IndexError, KeyError, ValueError):
        whole = False
    if not whole:
        raise InputError(
            f"input_template {input_template!r} must hold one {{}} for the user's text, "
            "and {{ }} doubled where braces are meant"
        )


def is_answer(message: dict[str, str]) -> bool:
    """Whether `message` is an assistant turn with text in it."""
    return message["role"] == "assistant" and bool(message["content"].strip())


def complete(messages: Messages) -> Messages:
    """`messages` up to the last assistant turn with text; what follows it teaches nothing."""
    answers = [i for i, message in enumerate(messages) if is_answer(message)]
    return messages[: answers[-1] + 1] if answers else []


def render_template(messages: Messages, input_template: str) -> Rendered:
    """Text by the published template: each user turn in it, its answer right behind.

    Any other turn starts on a new line. Neighbouring messages of one role are one turn, joined by
    a newline. System text stands as it is.
    """
    text, spans, previous = "", [], "user"
    for role, group in groupby(messages, key=lambda message: message["role"]):
        content = "\n".join(message["content"] for message in group)
        if previous != "user":
            text += "\n"
        if role == "assistant":
            spans.append((len(text), len(text) + len(content)))
        text += input_template.format(content) if role == "user" else content
        previous = role
    return Rendered(text, spans)


def render_chat(messages: Messages, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """Text by the tokenizer's chat template, rendered in the sandbox of transformers.

    A template with `{% generation %}` marks says itself what an assistant turn is. For others a
    span starts where the conversation before the turn, rendered with a generation prompt, ends; it
    holds the turn's text and the marker that closes it (such as <|im_end|>).

    Raises:
        InputError: The template refuses the conversation, or writes it so that an assistant turn
            cannot be found.
    """
    turns = [i for i, message in enumerate(messages) if is_answer(message)]
    if _GENERATION.search(tokenizer.get_chat_template()):
        text, spans = _render(messages, tokenizer, marks=True)
        return Rendered(text, _last_in_one(text, spans, messages[turns[-1]]["content"]))
    text, _ = _render(messages, tokenizer)
    starts = [_start(text, messages[:i], tokenizer) for i in turns]
    limits = [*starts[1:], len(text)]
    stops = [
        _stop(text, start, limit, messages[i]["content"])
        for i, start, limit in zip(turns, starts, limits, strict=True)
    ]
    closing = text[stops[-1] :].rstrip()
    ends = [stop + _closing_length(text[stop:], closing) for stop in stops]
    return Rendered(text, list(zip(starts, ends, strict=True)))


def _render(
    messages: Messages,
    tokenizer: PreTrainedTokenizerBase,
    *,
    generation_prompt: bool = False,
    marks: bool = False,
) -> tuple[str, list[tuple[int, int]]]:
    """The text, and with `marks` the spans of its `{% generation %}` blocks.

    `tokenizer.apply_chat_template` renders the same way, but keeps the spans to itself.
    """
    try:
        texts, spans = render_jinja_template(
            [messages],
            chat_template=tokenizer.get_chat_template(),
            add_generation_prompt=generation_prompt,
            return_assistant_tokens_mask=marks,
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # a template may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"the chat template refuses the conversation ({reason})") from error
    return texts[0], spans[0] if marks else []


def _last_in_one(text: str, spans: list[tuple[int, int]], answer: str) -> list[tuple[int, int]]:
    """`spans` with what is marked behind the last answer (an end of text) joined to it."""
    for written in (answer.strip(), answer.split()[-1]):
        holders = [i for i, (start, stop) in enumerate(spans) if written in text[start:stop]]
        if holders:
            return [*spans[: holders[-1]], (spans[holders[-1]][0], spans[-1][1])]
    # as do templates for messages in parts, of a message that is text
    raise InputError(
        "the chat template does not write the last answer within its {% generation %} marks; "
        "mend it, or train without apply_chat_template"
    )


def _start(text: str, before: Messages, tokenizer: PreTrainedTokenizerBase) -> int:
    prompt, _ = _render(before, tokenizer, generation_prompt=True)
    if not text.startswith(prompt):
        raise InputError(
            "the chat template's generation prompt is not how it starts an assistant turn; "
            f"{_REMEDY}"
        )
    return len(prompt)


def _stop(text: str, start: int, limit: int, content: str) -> int:
    for written in (content, content.strip()):
        found = text.find(written, start, limit)
        if found >= 0:
            return found + len(written)
    raise InputError(f"the chat template rewrites the text of an assistant turn; {_REMEDY}")


def _closing_length(rest: str, closing: str) -> int:
    """Characters of `closing`, which closes the last turn, that also stand at the start of `rest`.

    Phi 3 closes every turn with <|end|> and the last one with an end of text on the next line too:
    what they share stops at the line end.
    """
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(rest, closing, strict=False))
    shared = "".join(character for character, _ in pairs)
    if shared != closing:
        shared = re.sub(r"\S*$", "", shared)
    return len(shared.rstrip())
