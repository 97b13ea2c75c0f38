"""What a caller asks a model to answer, checked and copied before anything starts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from .errors import InvalidRequest
from .plain import plain_mapping, plain_text

ROLES = ("system", "developer", "user", "assistant", "tool")

# What the library itself passes to the template.
_RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tool_choice",
        "tools",
        "truncation",
    }
)


@dataclass(frozen=True)
class PromptRequest:
    """A prompt and how it is to be templated. Plain values only, so it pickles.

    Making one checks it and copies it: the caller's lists and mappings are neither
    changed nor kept. Content parts are joined and JSON arguments of tool calls
    parsed, which is the form that chat templates want.

    Attributes:
        prompt: a string, which is one user message, or OpenAI-style messages.
        raw: `prompt` is plain text to continue: no template, and what the model
            writes is not parsed for thinking or tool calls.
        tools: functions the model may call, in OpenAI form.
        tool_choice: "none" hides the tools, "auto" (or None) leaves it to the model
            whether it calls one, "required" makes it call, and
            `{"type": "function", "function": {"name": ...}}` makes it call that one,
            once.
        parallel_tool_calls: the model may make several calls in one answer.
        thinking: the template's `enable_thinking`; None leaves it to the model.
        template_kwargs: more variables for the template. With
            `continue_final_message=True` the model goes on with the last message,
            which must be the assistant's.

    Raises:
        InvalidRequest: something is wrong with the above; the message says where.
    """

    prompt: str | Sequence[Mapping[str, Any]]
    _: KW_ONLY
    raw: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool = True
    thinking: bool | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked = {
            "prompt": _prompt(self.prompt),
            "tools": _tools(self.tools),
            "template_kwargs": _template_kwargs(self.template_kwargs),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "tool_choice", _tool_choice(self.tool_choice, self.tools))
        _switch("raw", self.raw)
        _switch("parallel_tool_calls", self.parallel_tool_calls)
        if self.thinking is not None:
            _switch("thinking", self.thinking)
        self._check_combination()

    def _check_combination(self) -> None:
        is_text = isinstance(self.prompt, str)
        if self.raw and not is_text:
            raise InvalidRequest("raw=True continues plain text; prompt must be a string.")
        if self.raw and self.offered_tools:
            raise InvalidRequest("raw=True uses no chat template, so it cannot offer tools.")
        if self.continues_message and (is_text or self.messages[-1]["role"] != "assistant"):
            raise InvalidRequest(
                "continue_final_message needs messages of which the last is the assistant's."
            )

    @property
    def messages(self) -> tuple[Mapping[str, Any], ...]:
        """The prompt as messages."""
        if isinstance(self.prompt, str):
            return ({"role": "user", "content": self.prompt},)
        return tuple(self.prompt)

    @property
    def offered_tools(self) -> tuple[Mapping[str, Any], ...]:
        """The tools the model gets to see."""
        return () if self.tool_choice == "none" else tuple(self.tools)

    @property
    def forced_tools(self) -> tuple[Mapping[str, Any], ...]:
        """The tools of which one must be called; empty when the model may choose not to."""
        if isinstance(self.tool_choice, Mapping):
            name = self.tool_choice["function"]["name"]
            return tuple(tool for tool in self.tools if tool["function"]["name"] == name)
        return tuple(self.tools) if self.tool_choice == "required" else ()

    @property
    def continues_message(self) -> bool:
        """The model goes on with the last message instead of beginning one."""
        return bool(self.template_kwargs.get("continue_final_message"))


def take_turns(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join neighbours of one role, because many chat templates want roles to take turns.

    Only messages that are nothing but text are joined, with an empty line between.

    Args:
        messages: OpenAI-style, with text as content; they are not changed.
    """
    turns: list[dict[str, Any]] = []
    for message in messages:
        last = turns[-1] if turns else {}
        plain = last.keys() == message.keys() == {"role", "content"}
        if plain and last["role"] == message["role"]:
            texts = (last["content"], message["content"])
            turns[-1] = {**last, "content": "\n\n".join(text for text in texts if text)}
        else:
            turns.append(message)
    return turns


def _prompt(prompt: object) -> str | tuple[dict[str, Any], ...]:
    if isinstance(prompt, str):
        if not prompt:
            raise InvalidRequest("prompt is an empty string.")
        return plain_text(prompt, "prompt")
    if not isinstance(prompt, (list, tuple)):
        raise InvalidRequest(
            f"prompt is a {type(prompt).__name__}; it must be a string or a list of messages."
        )
    if not prompt:
        raise InvalidRequest("messages is an empty list.")
    return tuple(_message(m, f"messages[{i}]") for i, m in enumerate(prompt))


def _message(message: object, where: str) -> dict[str, Any]:
    copy = plain_mapping(message, where)
    role = copy.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"{where} has the role {role!r}; it must be one of {_words(ROLES)}.")
    calls = copy.get("tool_calls")
    if calls and role != "assistant":
        raise InvalidRequest(f"{where} has tool_calls, but its role is {role!r}, not 'assistant'.")
    if calls:
        copy["tool_calls"] = _tool_calls(calls, f"{where}.tool_calls")
    else:
        copy.pop("tool_calls", None)
    if role == "tool" and not (isinstance(copy.get("tool_call_id"), str) and copy["tool_call_id"]):
        raise InvalidRequest(f"{where} is a tool's answer without the tool_call_id it answers.")
    content = copy.get("content")
    if content is None and not calls:
        raise InvalidRequest(f"{where} has no content; only tool_calls may stand instead of it.")
    # "" rather than None: not every template asks before it adds the content to a string.
    copy["content"] = "" if content is None else _content(content, f"{where}.content")
    return copy


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(
            f"{where} is a {type(content).__name__}; it must be a string or a list of text parts."
        )
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text":
            raise InvalidRequest(f"{where}[{i}] is of type {kind!r}; only 'text' parts are taken.")
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{where}[{i}] has no string under 'text'.")
        texts.append(part["text"])
    return "".join(texts)


def _tool_calls(calls: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise InvalidRequest(f"{where} is a {type(calls).__name__}; it must be a list.")
    return [_tool_call(call, f"{where}[{i}]") for i, call in enumerate(calls)]


def _tool_call(call: object, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise InvalidRequest(f"{where} must be a mapping with a mapping under 'function'.")
    _check_name(function, where)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            raise InvalidRequest(f"{where}: its arguments are not JSON ({error}).") from error
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{where}: its arguments are no JSON object.")
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def _tools(tools: object) -> tuple[dict[str, Any], ...]:
    if not isinstance(tools, (list, tuple)):
        raise InvalidRequest(f"tools is a {type(tools).__name__}; it must be a list.")
    return tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools))


def _tool(tool: object, where: str) -> dict[str, Any]:
    copy = plain_mapping(tool, where)
    if copy.get("type") != "function" or not isinstance(copy.get("function"), dict):
        raise InvalidRequest(f'{where} must have the form {{"type": "function", "function": ...}}.')
    _check_name(copy["function"], where)
    return copy


def _tool_choice(
    choice: object, tools: Sequence[Mapping[str, Any]]
) -> str | Mapping[str, Any] | None:
    if choice is None or choice in ("auto", "none"):
        return choice
    if not tools:
        raise InvalidRequest(f"tool_choice is {choice!r}, but there are no tools.")
    if choice == "required":
        return "required"
    if not isinstance(choice, Mapping):
        raise InvalidRequest(
            f"tool_choice is {choice!r}; it must be 'auto', 'none', 'required' or name a function."
        )
    copy = plain_mapping(choice, "tool_choice")
    function = copy.get("function")
    if not isinstance(function, dict):
        raise InvalidRequest("tool_choice must have a mapping under 'function'.")
    names = [tool["function"]["name"] for tool in tools]
    if function.get("name") not in names:
        raise InvalidRequest(
            f"tool_choice names {function.get('name')!r}; the tools are {_words(names)}."
        )
    return copy


def _template_kwargs(kwargs: object) -> dict[str, Any]:
    copy = plain_mapping(kwargs, "template_kwargs")
    if taken := sorted(_RESERVED & copy.keys()):
        raise InvalidRequest(f"template_kwargs must not set {_words(taken)}.")
    _switch("continue_final_message", copy.get("continue_final_message", False))
    return copy


def _switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} is {value!r}; it must be True or False.")


def _check_name(function: Mapping[str, Any], where: str) -> None:
    if not (isinstance(function.get("name"), str) and function["name"]):
        raise InvalidRequest(f"{where}: its function has no name.")


def _words(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
