"""The caller's text in a prompt: marked before the template, and looked for after it.

A template is somebody else's program. It may iterate over parts although the content is a string,
ignore system messages, or show the calls of an answer without its text. Then what the caller said
is silently missing from the prompt. So each text is given to the template twice: as it is, for
the prompt, and with a private mark in its middle, for a second rendering that shows where the
text is, if it is there at all. The mark is in the middle because templates look at how a text
begins and ends.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from .control import ControlWords, Words

if TYPE_CHECKING:
    from ...request import PromptRequest

# Private-use characters, to which Unicode never gives a meaning.
_PRIVATE = tuple(chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE)))


class TextLost(Exception):
    """A template leaves out or changes a text of the caller.

    Attributes:
        where: the place of the text in the request.
    """

    def __init__(self, where: str, text: str) -> None:
        super().__init__(where, text)
        self.where = where
        self.text = text


@dataclass(frozen=True)
class Given:
    """The values for a template."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    options: dict[str, Any]


@dataclass(frozen=True)
class _Text:
    """A text that must be in the prompt: its two halves, without surrounding space."""

    where: str
    before: str
    after: str
    control: Words


@dataclass(frozen=True)
class Found:
    """Where the caller's texts are in the output of a template.

    Attributes:
        spans: start and end of each, in order, and the control words that it may not contain; in
            the marked rendering, without its marks.
        tail: what follows the last text.
        exact: the marks made no difference, so the spans apply to the prompt as well.
    """

    spans: list[tuple[int, int, Words]]
    tail: str
    exact: bool


class CallerText:
    """The texts of a request, without control tokens and with marks.

    Args:
        request: not changed.
        control: what the texts must not contain.
        template: the source of the template, in which no mark may occur.
        think: the markers around the thinking of an answer.

    Attributes:
        cut: the character that splits the names of control tokens.
        plain: the request with its control tokens split.
        marked: the same, with a mark in each text that must be in the prompt.
    """

    def __init__(
        self, request: PromptRequest, control: ControlWords, template: str, think: tuple[str, str]
    ) -> None:
        given = Given(
            [dict(message) for message in request.messages],
            [dict(tool) for tool in request.offered_tools],
            dict(request.template_kwargs),
        )
        strings: list[str] = [template]
        _collect_strings([given.messages, given.tools, given.options], strings)
        taken = "".join(strings)
        free = (c for c in map(chr, _PRIVATE) if c not in taken)
        self.cut, self._open, self._close = next(free), next(free), next(free)
        self._control = control
        self._think = think
        self._switches = _switches(template)
        self._texts: list[_Text] = []
        self._is_text = isinstance(request.prompt, str)
        last = len(given.messages) - 1 if request.continues_message else None
        self.plain = Given(
            [
                self._without_control(message, whole=i == last)
                for i, message in enumerate(given.messages)
            ],
            self._cut(given.tools),
            self._cut(given.options),
        )
        self.marked = Given(
            [
                self._mark_message(message, i, whole=i == last)
                for i, message in enumerate(self.plain.messages)
            ],
            [self._mark_tool(tool, i) for i, tool in enumerate(self.plain.tools)],
            self._mark_documents(self.plain.options),
        )
        signs = [f"(?:{c}|{_escaped(c)})" for c in (self._open, self._close)]
        self._mark_pattern = re.compile(rf"{signs[0]}(\d+){signs[1]}")

    def find(self, plain: str, marked: str, *, in_parts: bool, without: str) -> Found:
        """Find all texts in a prompt.

        Args:
            plain: the output of the template for `plain`.
            marked: its output for `marked`.
            in_parts: it was given lists of parts, and must not print them as Python values.
            without: a place whose texts were not given to it.

        Raises:
            TextLost: one is missing or changed.
        """
        pieces = self._mark_pattern.split(marked)
        bare = "".join(pieces[::2])
        exact = bare == plain
        spans: list[tuple[int, int, Words]] = []
        seen: set[int] = set()
        position = 0
        for piece, number in zip(pieces[::2], map(int, pieces[1::2]), strict=False):
            position += len(piece)
            text = self._texts[number]
            span = self._span(bare, position, text)
            if span and in_parts and _PARTS.search(bare, max(0, span[0] - 12), span[0]):
                continue
            if span and (exact or _without_spaces(bare[slice(*span)]) in _without_spaces(plain)):
                seen.add(number)
                spans.append((*span, text.control))
        for number, text in enumerate(self._texts):
            if number not in seen and not (without and text.where.startswith(without)):
                raise TextLost(text.where, text.before + text.after)
        end = max((end for _, end, _ in spans), default=0)
        return Found(spans, bare[end:], exact)

    def cut_composed(self, text: str, found: Found) -> str:
        """Split control tokens that a text and the template's own output make together."""
        if not found.exact:
            return text
        places: set[int] = set()
        for start, end, words in found.spans:
            first = max(0, start - words.longest)
            for place, a, b in words.cuts(text[first : end + words.longest]):
                if first + a < end and first + b > start:
                    places.add(first + place)
        cuts = pairwise((0, *sorted(places), len(text)))
        return self.cut.join(text[a:b] for a, b in cuts)

    def unescaped(self, text: str) -> str:
        """A rendered text in which cuts that JSON escaped are restored."""
        return text.replace(json.dumps(self.cut)[1:-1], self.cut)

    def _without_control(self, message: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
        content = message["content"]
        if message["role"] != "assistant":
            content = self._control.all.cut(content, self.cut)
        elif whole:
            content = self._control.turns.cut(content, self.cut)
        else:
            head, answer = _thinking_apart(content, self._think)
            head = self._control.turns.cut(head, self.cut)
            content = head + self._control.answers.cut(answer, self.cut)
        return {**self._cut({**message, "content": ""}), "content": content}

    def _cut(self, value: Any) -> Any:
        return _map_strings(value, lambda text: self._control.all.cut(text, self.cut))

    def _mark_message(self, message: dict[str, Any], i: int, *, whole: bool) -> dict[str, Any]:
        where = "the prompt" if self._is_text else f"messages[{i}]"
        head, answer, words = "", message["content"], self._control.all
        if message["role"] == "assistant":
            words = self._control.turns
            if not whole:
                head, answer = _thinking_apart(answer, self._think)
                words = self._control.answers
        marked = {**message, "content": head + self._mark(answer, where, words)}
        if "tool_calls" in message:
            marked["tool_calls"] = [
                self._mark_call(call, f"{where}.tool_calls[{j}]")
                for j, call in enumerate(message["tool_calls"])
            ]
        return marked

    def _mark_call(self, call: dict[str, Any], where: str) -> dict[str, Any]:
        def mark(text: str) -> str:
            return self._mark(text, where, self._control.all)

        function = dict(call["function"])
        known = len(self._texts)
        function["arguments"] = _map_values(function["arguments"], mark)
        if len(self._texts) == known:  # it contains no text except names
            function["name"] = mark(function["name"])
            function["arguments"] = {mark(k): v for k, v in function["arguments"].items()}
        return {**call, "function": function}

    def _mark_tool(self, tool: dict[str, Any], i: int) -> dict[str, Any]:
        function = dict(tool["function"])
        description = function.get("description")
        told = isinstance(description, str) and bool(description.strip())
        key = "description" if told else "name"
        function[key] = self._mark(function[key], f"tools[{i}]", self._control.all)
        return {**tool, "function": function}

    def _mark_documents(self, options: dict[str, Any]) -> dict[str, Any]:
        """The template's variables. Of these, only documents must be in the prompt."""
        documents = options.get("documents")
        if not isinstance(documents, list):
            return options
        marked = [
            self._mark_document(document, f"template_kwargs.documents[{i}]")
            for i, document in enumerate(documents)
        ]
        return {**options, "documents": marked}

    def _mark_document(self, document: Any, where: str) -> Any:
        if isinstance(document, dict):
            for key in ("text", "content"):
                if isinstance(document.get(key), str):
                    text = self._mark(document[key], where, self._control.all)
                    return {**document, key: text}
        return document

    def _mark(self, text: str, where: str, control: Words) -> str:
        core = text.strip()
        if not self._switches.sub("", core).strip():
            return text
        half = len(core) // 2
        for switch in self._switches.finditer(core):
            if switch.start() < half < switch.end():
                half = switch.start() or switch.end()
        self._texts.append(_Text(where, core[:half], core[half:], control))
        middle = text.index(core) + half
        number = len(self._texts) - 1
        return f"{text[:middle]}{self._open}{number}{self._close}{text[middle:]}"

    def _span(self, text: str, position: int, of: _Text) -> tuple[int, int] | None:
        """Start and end of a text whose mark is at a position; None if it is incomplete."""
        for form in _FORMS:
            before, after = form(of.before), form(of.after)
            if text.endswith(before, 0, position) and text.startswith(after, position):
                return position - len(before), position + len(after)
        before, after = (self._switches.sub("", half) for half in (of.before, of.after))
        behind = text[max(0, position - 2 * len(before) - 999) : position]
        start = _match(behind[::-1], before[::-1])
        end = _match(text[position:], after)
        return None if start is None or end is None else (position - start, position + end)


# A list of parts as Python or JSON prints it.
_PARTS = re.compile(r"""["']text["']:\s*["']\Z""")


@lru_cache(maxsize=32)  # of the templates in use
def _switches(template: str) -> re.Pattern[str]:
    """The words that a template removes from messages and acts on, such as "/no_think"."""
    words = set(re.findall(r"""["'](/[a-z_]+)["']""", template))
    return re.compile("|".join(map(re.escape, sorted(words, reverse=True))) or "(?!)")


def _thinking_apart(content: str, think: tuple[str, str]) -> tuple[str, str]:
    """Split an earlier answer into its thinking, which templates may drop, and the rest.

    A model writes the end of its thinking next to a line break. An end marker within a line counts
    only if the answer begins with a start marker; otherwise it is a mention.
    """
    for start, end in dict.fromkeys((think, ("<think>", "</think>"))):
        opened = bool(start) and content.lstrip().startswith(start)
        places = [m.end() for m in re.finditer(re.escape(end), content)] if end else []
        apart = [p for p in places if "\n" in (content[p : p + 1], content[: p - len(end)][-1:])]
        if apart or (opened and places):
            place = apart[-1] if apart else places[0]
            return content[:place], content[place:]
        if opened:
            return content, ""
    return "", content


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _ascii_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def _html(text: str) -> str:
    """The text as Jinja escapes it."""
    return html.escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")


def _html_json(text: str) -> str:
    """The text as Jinja's own filter writes JSON."""
    return re.sub("[<>&']", lambda m: f"\\u{ord(m[0]):04x}", _ascii_json(text))


# The ways in which a template may write a text: as it is, in JSON, in JSON inside JSON, and so on.
_FORMS: tuple[Callable[[str], str], ...] = (
    lambda text: text,
    _json,
    _ascii_json,
    lambda text: _json(_json(text)),
    _html,
    _html_json,
    lambda text: repr(f"{text}'\"")[1:-4],
    lambda text: repr(text)[1:-1],
)


def _match(text: str, wanted: str) -> int | None:
    """The length of a prefix that equals what is wanted, ignoring spaces; None if there is none."""
    position = 0
    for char in wanted:
        if char.isspace():
            continue
        while position < len(text) and text[position].isspace():
            position += 1
        if position == len(text) or text[position] != char:
            return None
        position += 1
    return position


def _without_spaces(text: str) -> str:
    return "".join(text.split())


def _escaped(char: str) -> str:
    return re.escape(json.dumps(char)[1:-1])


def _collect_strings(value: Any, strings: list[str]) -> None:
    """Add all strings in plain values to a list, including keys."""
    if isinstance(value, str):
        strings.append(value)
    elif isinstance(value, dict):
        strings += value
        for item in value.values():
            _collect_strings(item, strings)
    elif isinstance(value, list):
        for item in value:
            _collect_strings(item, strings)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    return value


def _map_values(value: Any, change: Callable[[str], str]) -> Any:
    """Like `_map_strings`, but for values only."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _map_values(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_values(item, change) for item in value]
    return value
