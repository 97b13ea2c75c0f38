"""What a caller asks a model to answer, checked and copied before anything starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any, cast

from .errors import InvalidRequest
from .json_values import (
    characters,
    json_object,
    plain_list,
    plain_number,
    plain_text,
    shown,
    token_ids,
)
from .turns import order_results

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
        "self",
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
    changed nor kept. Content parts are joined, JSON arguments of tool calls parsed, and
    the results of tools put into the order of their calls, which is the form that chat
    templates want.

    Attributes:
        prompt: a string, which is one user message, or OpenAI-style messages. With `raw` it
            may be the ids of the model's own tokens, to which no special tokens are added.
        raw: `prompt` is plain text to continue: no template, and what the model
            writes is not parsed for thinking or tool calls.
        tools: functions the model may call, in OpenAI form. A call takes Python functions
            and pydantic classes as well; see `tool_functions`.
        tool_choice: "none" hides the tools, "auto" (or None) leaves it to the model
            whether it calls one, "required" makes it call, and
            `{"type": "function", "function": {"name": ...}}` makes it call that one,
            once.
        parallel_tool_calls: the model may make several calls in one answer.
        thinking: the template's `enable_thinking`; None leaves it to the model.
        continue_final_message: the model continues the last message, which must be the
            assistant's, instead of beginning a new one.
        template_kwargs: more variables for the template. As with transformers,
            `continue_final_message` may be given here as well.

    Raises:
        InvalidRequest: something is wrong with the above; the message says where.
    """

    prompt: str | Sequence[Mapping[str, Any] | int]
    _: KW_ONLY
    raw: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool = True
    thinking: bool | None = None
    continue_final_message: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", _prompt(self.prompt))
        if type(self.tools) is not tuple or self.tools:
            object.__setattr__(self, "tools", _tools(self.tools))
        object.__setattr__(self, "template_kwargs", _template_kwargs(self.template_kwargs))
        if self.tool_choice is not None:
            object.__setattr__(self, "tool_choice", _tool_choice(self.tool_choice, self.tools))
        for name in ("raw", "parallel_tool_calls", "continue_final_message", "thinking"):
            value = getattr(self, name)
            if not isinstance(value, bool) and (value is not None or name != "thinking"):
                raise _no_switch(name, value)
        self._check_combination()

    def _check_combination(self) -> None:
        is_text = isinstance(self.prompt, str)
        if self.raw and not (is_text or self.ids):
            raise InvalidRequest("raw=True continues plain text; prompt must be a string.")
        if self.ids and not self.raw:
            raise InvalidRequest(
                "prompt is a list of token ids, which no chat template takes.",
                hint="Pass raw=True to continue them.",
            )
        if self.raw and self.offered_tools:
            raise InvalidRequest("raw=True uses no chat template, so it cannot offer tools.")
        if not self.continues_message:
            return
        if is_text or self.ids or self.messages[-1]["role"] != "assistant":
            raise InvalidRequest(
                "continue_final_message needs messages of which the last is the assistant's.",
                hint='End the messages with {"role": "assistant", "content": <its beginning>}.',
            )
        if not self.messages[-1]["content"]:
            raise InvalidRequest("continue_final_message is set, but the last message is empty.")
        if self.messages[-1].get("tool_calls"):
            raise InvalidRequest(
                "continue_final_message is set, but the last message ends with tool calls.",
                hint="Add the results of the calls, or leave the calls out.",
            )

    @cached_property
    def characters(self) -> int:
        """How many there are in all that goes through the template; an id counts as one."""
        return len(self.ids) or characters([self.prompt, self.tools, self.template_kwargs])

    @property
    def ids(self) -> tuple[int, ...]:
        """The prompt as ids of tokens; empty if it is text or messages."""
        return cast("tuple[int, ...]", self.prompt) if are_token_ids(self.prompt) else ()

    @property
    def messages(self) -> tuple[Mapping[str, Any], ...]:
        """The prompt as messages."""
        if isinstance(self.prompt, str):
            return ({"role": "user", "content": self.prompt},)
        return cast("tuple[Mapping[str, Any], ...]", tuple(self.prompt))

    @property
    def offered_tools(self) -> tuple[Mapping[str, Any], ...]:
        """The tools the model gets to see."""
        return () if self.tool_choice == "none" else tuple(self.tools)

    @property
    def forced_tools(self) -> tuple[Mapping[str, Any], ...]:
        """The tools one of which must be called; empty when the model may call none."""
        if isinstance(self.tool_choice, Mapping):
            name = self.tool_choice["function"]["name"]
            return tuple(tool for tool in self.tools if tool["function"]["name"] == name)
        return tuple(self.tools) if self.tool_choice == "required" else ()

    @property
    def continues_message(self) -> bool:
        """The model continues the last message instead of beginning a new one."""
        return self.continue_final_message or bool(
            self.template_kwargs.get("continue_final_message")
        )


def are_token_ids(prompt: object) -> bool:
    """Whether a prompt, checked or not, is given as the ids of its tokens."""
    if not isinstance(prompt, (list, tuple)) or not prompt:
        return False
    return isinstance(plain_number(prompt[0]), int)


def _prompt(prompt: object) -> str | tuple[dict[str, Any], ...] | tuple[int, ...]:
    if isinstance(prompt, str):
        text = plain_text(prompt, "prompt")
        if not text:
            raise InvalidRequest("prompt is an empty string.")
        return text
    if not isinstance(prompt, (list, tuple)):
        raise InvalidRequest(
            f"prompt is a {type(prompt).__name__}; it must be a string or a list of messages."
        )
    messages = plain_list(prompt, "messages")
    if are_token_ids(messages):
        return token_ids(messages, "prompt")
    if not messages:
        raise InvalidRequest("messages is an empty list.")
    return tuple(order_results([_message(m, f"messages[{i}]") for i, m in enumerate(messages)]))


def _message(message: object, where: str) -> dict[str, Any]:
    copy = json_object(message, where)
    role = copy.get("role")
    if role not in ROLES:
        raise InvalidRequest(
            f"{where} has the role {shown(role)}; it must be one of {_words(ROLES)}."
        )
    calls = copy.get("tool_calls")
    if calls and role != "assistant":
        raise InvalidRequest(
            f"{where} has tool_calls, but its role is {shown(role)}, not 'assistant'."
        )
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
            raise InvalidRequest(
                f"{where}[{i}] is of type {shown(kind)}; only 'text' parts are taken."
            )
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
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{where}: its arguments are not JSON ({error}).") from error
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{where}: its arguments are no JSON object.")
    arguments = json_object(arguments, f"{where}.function.arguments")
    return {"type": "function", **call, "function": {**function, "arguments": arguments}}


def _tools(tools: object) -> tuple[dict[str, Any], ...]:
    if not isinstance(tools, (list, tuple)):
        raise InvalidRequest(f"tools is a {type(tools).__name__}; it must be a list.")
    return tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(plain_list(tools, "tools")))


def _tool(tool: object, where: str) -> dict[str, Any]:
    copy = json_object(tool, where)
    if copy.get("type") != "function" or not isinstance(copy.get("function"), dict):
        raise InvalidRequest(f'{where} must have the form {{"type": "function", "function": ...}}.')
    _check_name(copy["function"], where)
    return copy


def _tool_choice(
    choice: object, tools: Sequence[Mapping[str, Any]]
) -> str | Mapping[str, Any] | None:
    word = plain_text(choice, "tool_choice") if isinstance(choice, str) else None
    if word in ("auto", "none"):
        return word
    if not tools:
        raise InvalidRequest(f"tool_choice is {shown(choice)}, but there are no tools.")
    if word == "required":
        return "required"
    if not isinstance(choice, Mapping):
        raise InvalidRequest(
            f"tool_choice is {shown(choice)}; "
            "it must be 'auto', 'none', 'required' or name a function."
        )
    copy = json_object(choice, "tool_choice")
    function = copy.get("function")
    if not isinstance(function, dict):
        raise InvalidRequest("tool_choice must have a mapping under 'function'.")
    names = [tool["function"]["name"] for tool in tools]
    if function.get("name") not in names:
        raise InvalidRequest(
            f"tool_choice names {shown(function.get('name'))}; the tools are {_words(names)}."
        )
    return copy


def _template_kwargs(kwargs: object) -> dict[str, Any]:
    if type(kwargs) is dict and not kwargs:
        return {}
    copy = json_object(kwargs, "template_kwargs")
    if taken := sorted(_RESERVED & copy.keys()):
        raise InvalidRequest(f"template_kwargs must not set {_words(taken)}.")
    name = "continue_final_message"
    if not isinstance(copy.get(name, False), bool):
        raise _no_switch(name, copy[name])
    return copy


def _no_switch(name: str, value: object) -> InvalidRequest:
    return InvalidRequest(f"{name} is {shown(value)}; it must be True or False.")


def _check_name(function: Mapping[str, Any], where: str) -> None:
    if not (isinstance(function.get("name"), str) and function["name"]):
        raise InvalidRequest(f"{where}: its function has no name.")


def _words(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
