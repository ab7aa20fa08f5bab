"""Conversations to text, and which characters of that text are to be learned.

A span (start, stop) is a range of characters. Spans are found on the text, tokens only later and
once, so no response token is lost where the prompt ends.
"""

import json
import re
from collections.abc import Callable, Iterator
from itertools import groupby, takewhile
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from seal.datasets.prompts import THOUGHTS, Messages
from seal.errors import InputError, said

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_OPENED = re.compile(r"<think>\s*$")
_REMEDY = "mark its turns with {% generation %}, or train without apply_chat_template"
REFUSED = "refused by the chat template"
REWRITTEN = "rewritten by the chat template"
_MARK = "\ue000{}\ue001"  # stands for an answer; private characters that no text should hold


class Unfit(Exception):
    """A row that cannot be rendered whole: "reason" or "reason: detail"."""


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


def is_answer(message: dict) -> bool:
    """Whether `message` is an assistant turn with text or a tool call in it."""
    return message["role"] == "assistant" and bool(
        message["content"].strip() or "tool_calls" in message
    )


def complete(messages: Messages) -> Messages:
    """`messages` up to the last answer that is learned; what follows it teaches nothing."""
    learned = [i for i, m in enumerate(messages) if is_answer(m) and "weight" not in m]
    return messages[: learned[-1] + 1] if learned else []


def render_template(
    messages: Messages, input_template: str, tools: list[dict] | None = None
) -> Rendered:
    """Text by the published template: each user turn in it, its answer right behind.

    Any other turn starts on a new line. Neighbouring messages of one role are one turn, joined by
    a newline. System text stands as it is.

    Raises:
        Unfit: The conversation holds more than that can say.
    """
    beside = _beside(messages, tools) or [m["role"] for m in messages if m["role"] == "tool"]
    if beside:
        raise Unfit(f"{beside[0]} not rendered")
    text, spans, previous = "", [], "user"
    for (role, learned), group in groupby(messages, key=lambda m: (m["role"], "weight" not in m)):
        content = "\n".join(message["content"] for message in group)
        if previous != "user":
            text += "\n"
        if role == "assistant" and learned:
            spans.append((len(text), len(text) + len(content)))
        text += input_template.format(content) if role == "user" else content
        previous = role
    return Rendered(text, spans)


def _beside(messages: Messages, tools: list[dict] | None) -> list[str]:
    """What a conversation holds beside the texts of user, system and assistant."""
    keys = {key for message in messages for key in message}
    keys |= {"tools"} if tools else set()
    return sorted(keys - {"role", "content", "weight", "tool_call_id"})


def render_chat(
    messages: Messages, tokenizer: PreTrainedTokenizerBase, tools: list[dict] | None = None
) -> Rendered:
    """Text by the tokenizer's chat template, rendered in the sandbox of transformers.

    A template with `{% generation %}` marks says itself what an assistant turn is. For others a
    span starts where the conversation before the turn, rendered with a generation prompt, ends; it
    holds the turn as the template writes it, whatever it makes of a thought or a tool call, and
    the marker that closes it (such as <|im_end|>).

    Raises:
        Unfit: The template refuses the conversation, leaves something out, or writes it so that an
            assistant turn cannot be found.
    """
    template = tokenizer.get_chat_template(tools=tools)
    turns = [i for i, message in enumerate(messages) if is_answer(message)]
    for key in _beside(messages, tools):
        if key not in template:
            raise Unfit(f"{key} not rendered")

    def render(part: Messages, generation_prompt: bool = False, marks: bool = False):
        # `tokenizer.apply_chat_template` renders the same way, but keeps the spans to itself.
        try:
            texts, spans = render_jinja_template(
                [part],
                tools=tools,
                chat_template=template,
                add_generation_prompt=generation_prompt,
                return_assistant_tokens_mask=marks,
                **tokenizer.special_tokens_map,
            )
        except Exception as error:  # a template may raise anything
            raise Unfit(
                f"{REFUSED}: the chat template refuses the conversation ({said(error)})"
            ) from error
        return (texts[0], spans[0]) if marks else texts[0]

    if _GENERATION.search(template):
        text, spans = render(messages, marks=True)
        spans = _last_in_one(text, spans, messages[turns[-1]]["content"])
        if len(spans) != len(turns) and any("weight" in message for message in messages):
            raise Unfit("weight not rendered: the template's marks are not one a turn")
    else:
        text = render(messages)
        spans = _spans(text, messages, turns, render)
    _check_whole(messages, tools, Rendered(text, spans), template)
    if len(spans) == len(turns):
        spans = [s for s, i in zip(spans, turns, strict=True) if "weight" not in messages[i]]
    return Rendered(text, spans)


def _last_in_one(text: str, spans: list[tuple[int, int]], answer: str) -> list[tuple[int, int]]:
    """`spans` with what is marked behind the last answer (an end of text) joined to it."""
    for written in (answer.strip(), "".join(answer.split()[-1:])):
        holders = [i for i, (start, stop) in enumerate(spans) if written in text[start:stop]]
        if holders:
            return [*spans[: holders[-1]], (spans[holders[-1]][0], spans[-1][1])]
    # as do templates for messages in parts, of a message that is text
    raise Unfit(
        f"{REWRITTEN}: the chat template does not write the last answer within its "
        "{% generation %} marks; mend it, or train without apply_chat_template"
    )


def _spans(
    text: str, messages: Messages, turns: list[int], render: Callable
) -> list[tuple[int, int]]:
    """Where each of the answers `turns` stands, with what closes it."""
    prompts = [render(messages[:i], generation_prompt=True) for i in turns]
    starts = [_start(text, prompt) for prompt in prompts]
    if starts[-1] is None:  # an older turn may be written without its thought
        raise Unfit(
            f"{REWRITTEN}: the chat template's generation prompt is not how it starts an "
            f"assistant turn; {_REMEDY}"
        )
    found = [_as_it_is(text, s, messages[i]) for s, i in zip(starts, turns, strict=True)]
    if None in found:
        found = _aligned(text, messages, turns, starts, render)
    closing = text[found[-1][1] :].rstrip()
    return [(start, stop + _closing_length(text[stop:], closing)) for start, stop in found]


def opened_thought(prompt: str) -> str:
    """What opens a thought at the end of a generation prompt, as DeepSeek's do; "" for none."""
    found = _OPENED.search(prompt)
    return found[0] if found else ""


def _start(text: str, prompt: str) -> int | None:
    """Where the turn begins that `prompt` asks for; a finished turn may be without its thought."""
    for lead in (prompt, prompt.removesuffix(opened_thought(prompt))):
        if text.startswith(lead):
            return len(lead)
    return None


def _as_it_is(text: str, start: int | None, message: dict) -> tuple[int, int] | None:
    """The span of an answer that is written at `start` and as it is, else None."""
    if start is None or message.keys() - {"role", "content", "weight"}:
        return None
    for written in (message["content"], message["content"].strip()):
        if text.startswith(written, start):
            return start, start + len(written)
    return None


def _aligned(
    text: str, messages: Messages, turns: list[int], starts: list[int | None], render: Callable
) -> list[tuple[int, int]]:
    """The spans of answers that are rewritten, found by what the template writes around them.

    That is the text of the conversation with a mark in place of each answer.
    """
    marked = list(messages)
    for number, i in enumerate(turns):
        marked[i] = {"role": "assistant", "content": _MARK.format(number)}
    around = re.split("\ue000[0-9]+\ue001", render(marked))
    if len(around) != len(turns) + 1:
        raise Unfit(f"{REWRITTEN}: the chat template rewrites the text of an assistant turn")
    spans, at = [], 0
    for i, start, before, after in zip(turns, starts, around, around[1:], strict=False):
        if start is None:
            start = at + len(_shared(text[at:], before))
            asked = messages[i - 1]["content"].strip() if i else ""
            if start - at < before.rfind(asked) + len(asked):
                start = len(text) + 1
        if i == turns[-1]:
            stop = len(text) - len(after) if text.endswith(after) else -1
        else:
            following = messages[i + 1]["content"].strip()
            cut = after.find(following) if i + 1 not in turns else -1
            stop = text.find(after[: cut + len(following)] if cut >= 0 else after, start)
        if not at <= start < stop:
            raise Unfit(
                f"{REWRITTEN}: the chat template rewrites the text of an assistant turn; {_REMEDY}"
            )
        spans.append((start, stop))
        at = stop
    return spans


def _check_whole(
    messages: Messages, tools: list[dict] | None, rendered: Rendered, template: str
) -> None:
    """Raises Unfit unless all that a row carries is written, answers within the spans.

    A template that knows thoughts may leave out those before the last question.
    """
    text, spans = rendered
    starts, stops = zip(*spans, strict=True)
    edges = zip((0, *stops), (*starts, len(text)), strict=True)
    asked = "\0".join(text[start:stop] for start, stop in edges)
    answered = "\0".join(text[start:stop] for start, stop in spans)
    question = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    for i, message in enumerate(messages):
        role = message["role"]
        for key in message.keys() - {"role", "weight", "tool_call_id"}:
            leaves, where = list(_leaves(message[key])), asked
            if role == "assistant":
                thoughts, where = [leaf.rpartition("</think>") for leaf in leaves], answered
                leaves = [after for _, _, after in thoughts]
                told = [thought.replace("<think>", "") for thought, _, _ in thoughts]
                if i > question and not all(_is_written(thought, answered) for thought in told):
                    raise Unfit("thought not rendered")
            old = key in THOUGHTS and i < question
            where = text if key == "name" else where
            if old or all(_is_written(leaf, where) for leaf in leaves):
                continue
            if key == "content" and role != "system":
                raise Unfit(f"{REWRITTEN}: the chat template rewrites the text of a {role} turn")
            raise Unfit(f"{role if key == 'content' else key} not rendered")
    functions = [tool.get("function", tool) for tool in tools or ()]
    told = [function.get(key, "") for function in functions for key in ("name", "description")]
    if not all(_is_written(leaf, asked) for leaf in told):
        raise Unfit("tools not rendered")


def _leaves(value: object) -> Iterator[str]:
    """The texts in a value; not those that only say of what kind it is."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item) if key not in ("type", "id") else ()
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value


def _is_written(leaf: str, text: str) -> bool:
    """Whether `text` holds `leaf`, as it is or within JSON."""
    leaf = leaf.strip()
    return (
        leaf in text
        or json.dumps(leaf, ensure_ascii=False)[1:-1] in text
        or json.dumps(leaf)[1:-1] in text
    )


def _closing_length(rest: str, closing: str) -> int:
    """Characters of `closing`, which closes the last turn, that also stand at the start of `rest`.

    Phi 3 closes every turn with <|end|> and the last one with an end of text on the next line too:
    what they share stops at the line end.
    """
    shared = _shared(rest, closing)
    if shared != closing:
        shared = re.sub(r"\S*$", "", shared)
    return len(shared.rstrip())


def _shared(one: str, other: str) -> str:
    """What both start with."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(character for character, _ in pairs)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that closes an assistant's turn in the chat template; None for no such."""
    if not tokenizer.chat_template:
        return None
    answer = _MARK.format(0)
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, ValueError, TypeError):  # of a template that wants other turns
        return None
    after = tokenizer(text.rpartition(answer)[2].lstrip(), add_special_tokens=False)["input_ids"]
    return after[0] if after and after[0] in tokenizer.added_tokens_decoder else None
