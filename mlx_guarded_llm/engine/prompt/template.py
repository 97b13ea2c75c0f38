"""Filling in the chat template of a model for one request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...errors import InvalidRequest, ModelInvalid
from ...turns import fold_system, take_turns
from ..output.thinking import thinking
from .caller_text import CallerText, Found, Given, TextLost
from .control import control_words, encode
from .message_format import PLAIN, MessageFormat, message_format, takes_developer
from .tool_format import ToolFormat
from .tool_prompt import as_text, describe, with_instructions, words_apart

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ...request import PromptRequest

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Form:
    """A way to give a conversation to a template.

    Attributes:
        native: the format in which the template writes tool calls; None if it does not, and they
            become text in our format.
        described: a system message describes the tools.
        format: what the template expects of messages.
        apart: text that comes with a call becomes a message before it.
        joined: consecutive messages of one role become one.
        folded_from: system messages from this index on become part of the user's message after
            them; None for none.
    """

    native: ToolFormat | None
    described: bool = False
    format: MessageFormat = PLAIN
    apart: bool = False
    joined: bool = False
    folded_from: int | None = None


@dataclass(frozen=True)
class Filled:
    """What a template made of a request.

    Attributes:
        text: the prompt; the character `cut` is inside of what looks like a control token but is
            not one.
        tail: the end of it that the caller did not write, or the last message, if that is
            continued.
        system: the beginning of every conversation with these system messages and tools.
        native: as `Form.native`.
    """

    text: str
    cut: str
    tail: str
    system: str
    native: ToolFormat | None

    def encode(self, tokenizer: TokenizerWrapper, text: str) -> tuple[int, ...]:
        """The tokens of `text` or `system`."""
        return encode(tokenizer, text, self.cut)


def fill(tokenizer: TokenizerWrapper, request: PromptRequest, native: ToolFormat | None) -> Filled:
    """Fill in the template in the first form in which nothing of the request is lost.

    Raises:
        InvalidRequest: in every form the template refuses the request, fails, or drops a text. The
            message is about the first form.
        ModelInvalid: the template is broken.
    """
    markers = (think.start, think.end) if (think := thinking(tokenizer)) else ("", "")
    source = str(tokenizer.chat_template)
    caller = CallerText(request, control_words(tokenizer), source, markers)
    first: Exception | None = None
    for form in _forms(tokenizer, request, native):
        if form.native is not native and not isinstance(first, TextLost):
            break  # the template refuses the conversation, not the format of calls
        try:
            return _Template(tokenizer, request, caller, form).fill()
        except (InvalidRequest, TextLost) as error:
            first = first or error
    assert first is not None, "there is always a form"
    if isinstance(first, TextLost):
        raise InvalidRequest(
            f"The model's chat template leaves out or changes the text of {first.where}, which "
            f"begins with {first.text[:40]!r}.",
            hint="The model cannot be told this in this place. Put it into a message of another "
            "role, or pass a prompt with raw=True that has the template's markup in it.",
        )
    raise first


def _forms(
    tokenizer: TokenizerWrapper, request: PromptRequest, native: ToolFormat | None
) -> Iterator[Form]:
    described = bool(request.offered_tools)
    bases = [Form(native)] if native else []
    bases.append(Form(None, described))
    speaks_and_calls = any(m.get("tool_calls") and m["content"] for m in request.messages)
    roles = [message["role"] for message in request.messages]
    instructs = "system" in roles or "developer" in roles
    for base in bases:
        yield base
        # The rest is tried only if that fails, because finding it out takes a while.
        wanted = replace(base, format=message_format(tokenizer))
        if wanted != base:
            yield wanted
        if base.native and speaks_and_calls:
            yield replace(wanted, apart=True)
        yield replace(wanted, joined=True)
        if instructs or base.described:  # some templates accept only one system message, or none
            yield replace(wanted, joined=True, folded_from=1)
            yield replace(wanted, joined=True, folded_from=0)


class _Template:
    """One form of one request."""

    def __init__(
        self, tokenizer: TokenizerWrapper, request: PromptRequest, caller: CallerText, form: Form
    ) -> None:
        self._tokenizer = tokenizer
        self._request = request
        self._caller = caller
        self._form = form

    def fill(self) -> Filled:
        """The filled template.

        Raises:
            TextLost: it does not contain a text of the caller.
            InvalidRequest: the template refuses the conversation or fails on it.
            ModelInvalid: the template is broken.
        """
        if not self._request.continues_message:
            text, found = self._checked(self._caller.plain, self._caller.marked, begins=True)
            tail = found.tail
        elif self._has_thinking(self._caller.plain.messages[-1]["content"]):
            text, tail = self._with_beginning()
        else:
            try:
                text, tail = self._up_to_the_end()
            except TextLost:  # some templates show tools next to the last question
                text, tail = self._with_beginning()
        return Filled(text, self._caller.cut, tail, self._system(), self._form.native)

    def _checked(self, plain: Given, marked: Given, *, begins: bool) -> tuple[str, Found]:
        """The output of the template, and where the caller's texts are in it.

        Args:
            begins: whether it ends with the beginning of the assistant's turn.
        """
        text = self._render(plain, self._messages(plain), begins=begins)
        again = self._render(marked, self._messages(marked), begins=begins)
        last = len(self._caller.plain.messages) - 1
        without = "" if len(plain.messages) > last else f"messages[{last}]"
        in_parts = bool(self._form.format.parts)
        found = self._caller.find(text, again, in_parts=in_parts, without=without)
        for where, name in _names(plain):
            if not any(form in text for form in (name, json.dumps(name)[1:-1])):
                raise TextLost(where, name)
        return self._caller.cut_composed(text, found), found

    def _up_to_the_end(self) -> tuple[str, str]:
        """The prompt up to the end of the last message's text."""
        said = self._caller.plain.messages[-1]["content"]
        text, found = self._checked(self._caller.plain, self._caller.marked, begins=False)
        spaces = said[len(said.rstrip()) :]
        rest = found.tail.removeprefix(spaces)
        if not text.endswith(rest):
            raise TextLost(f"messages[{len(self._request.messages) - 1}]", said)
        return text[: len(text) - len(rest)], ""

    def _with_beginning(self) -> tuple[str, str]:
        """The last message's text, after the beginning of the assistant's turn.

        The template does not write it, because templates drop or move the thinking of an answer.
        """
        plain, marked = (
            replace(given, messages=given.messages[:-1])
            for given in (self._caller.plain, self._caller.marked)
        )
        said = self._caller.plain.messages[-1]["content"]
        text, found = self._checked(plain, marked, begins=True)
        think = thinking(self._tokenizer)
        tail = found.tail
        if think and tail.rfind(think.start) > tail.rfind(think.end):  # the template opens one
            if not self._has_thinking(said):
                raise TextLost(f"messages[{len(plain.messages)}]", said)  # it is an answer
            if said.lstrip().startswith(think.start):
                opening = len(tail) - tail.rindex(think.start)
                text, tail = text[:-opening], tail[:-opening]
        return text + said, tail + said

    def _has_thinking(self, said: str) -> bool:
        think = thinking(self._tokenizer)
        return think is not None and (think.start in said or think.end in said)

    def _system(self) -> str:
        plain = self._caller.plain
        messages = self._messages(plain)
        count = next((i for i, m in enumerate(messages) if m["role"] != "system"), None)
        if not count:
            return ""
        nobody = self._form.format.write([{"role": "user", "content": ""}])
        try:
            return self._render(plain, [*messages[:count], *nobody], begins=False)
        except InvalidRequest:
            return ""  # some templates only render what ends like a prompt

    def _messages(self, given: Given) -> Messages:
        """The messages in this form."""
        messages = _known_roles(self._tokenizer, given.messages)
        if self._form.native is None:
            messages = as_text(messages)
        if self._form.apart:
            messages = words_apart(messages)
        if self._form.described:
            messages = with_instructions(messages, describe(given.tools))
        if self._form.folded_from is not None:
            messages = fold_system(messages, self._form.folded_from)
        if self._form.joined:
            messages = take_turns(messages, of_any_name=True)
        return self._form.format.write(messages)

    def _options(self, given: Given) -> dict[str, Any]:
        options = dict(given.options)
        options.pop("continue_final_message", None)
        shown = given.tools if self._form.native is not None else []
        options["tools"] = shown or None
        if shown and self._request.tool_choice is not None:
            options["tool_choice"] = self._request.tool_choice
        if self._request.thinking is not None:
            options["enable_thinking"] = self._request.thinking
        return options

    def _render(self, given: Given, messages: Messages, *, begins: bool) -> str:
        from jinja2 import TemplateError, TemplateSyntaxError

        options = self._options(given)
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=begins, **options
            )
        except TemplateSyntaxError as error:
            raise ModelInvalid(
                f"The model's chat template is broken: {error}.",
                hint="Fetch the model again, or pass raw=True and do without its template.",
            ) from error
        except TemplateError as error:  # raise_exception() in a template
            raise InvalidRequest(
                f"The model's chat template refuses the request: {error}"
            ) from error
        except Exception as error:  # templates run arbitrary expressions
            raise InvalidRequest(
                f"The model's chat template fails on the request: {type(error).__name__}: {error}"
            ) from error
        return self._caller.unescaped(str(text))


def _names(given: Given) -> Iterator[tuple[str, str]]:
    """The functions that the prompt must mention, each with its place in the request."""
    for i, tool in enumerate(given.tools):
        yield f"tools[{i}]", tool["function"]["name"]
    for i, message in enumerate(given.messages):
        for j, call in enumerate(message.get("tool_calls") or ()):
            yield f"messages[{i}].tool_calls[{j}]", call["function"]["name"]


def _known_roles(tokenizer: TokenizerWrapper, messages: Messages) -> Messages:
    """The messages with roles and ids of calls that the model's template accepts."""
    messages = [dict(message) for message in messages]
    instructions = [message for message in messages if message["role"] == "developer"]
    if instructions and not takes_developer(tokenizer):
        for message in instructions:
            message["role"] = "system"
    if tokenizer.init_kwargs.get("tool_parser_type") == "mistral":
        for message in messages:
            _shorten_ids(message)
    return messages


def _shorten_ids(message: dict[str, Any]) -> None:
    """Mistral's templates require ids of exactly nine letters or digits."""
    if "tool_call_id" in message:
        message["tool_call_id"] = _nine(message["tool_call_id"])
    if "tool_calls" in message:
        message["tool_calls"] = [
            {**call, "id": _nine(str(call.get("id")))} for call in message["tool_calls"]
        ]


def _nine(name: str) -> str:
    if len(name) == 9 and name.isalnum():
        return name
    return hashlib.sha256(name.encode()).hexdigest()[:9]
