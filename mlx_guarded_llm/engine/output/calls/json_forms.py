"""Formats in which a call, or its arguments, are JSON."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any

from ....results import ToolCall
from .cursor import Cursor
from .offered import Offered
from .values import NotACall, exact_json

Calls = list[ToolCall]

_NAME = re.compile(r"[^\s\[\]{}<>\"]*")
_SPACED_NAME = re.compile(rf"\s*{_NAME.pattern}\s*")
_LONGEST_NAME = 256
KIMI_CALL = "<|tool_call_begin|>"
DEEPSEEK_CALL = "<\uff5ctool▁call▁begin\uff5c>"
_KEYS = frozenset({"name", "arguments", "parameters", "id", "type"})


def objects(cursor: Cursor, offered: Offered, start: str, end: str) -> Generator[None, None, Calls]:
    """`{"name": ..., "arguments": ...}`, several of them or a list, between markers.

    Hermes, Qwen 2.5 and 3, and this library's own format.
    """
    calls: Calls = []
    yield from cursor.space()
    while True:
        value = yield from cursor.json()
        calls += called(value, offered)
        if (yield from cursor.end(end, start)):
            return calls


def mistral(cursor: Cursor, offered: Offered, start: str, end: str) -> Generator[None, None, Calls]:
    """`[TOOL_CALLS]` and a list of objects, or `name[CALL_ID]id[ARGS]{...}`, repeated.

    There is no marker after the calls: whatever is not another call is text again.
    """
    yield from cursor.space()
    if (yield from cursor.peek()) in ("[", "{"):
        return called((yield from cursor.json()), offered)
    calls: Calls = []
    while True:
        name = yield from cursor.run(_SPACED_NAME, _LONGEST_NAME)
        mark = yield from cursor.take("[CALL_ID]", "[ARGS]")
        # Some leave out the mark, and some decoders do.
        unmarked = not mark and name.strip() in offered and (yield from cursor.peek()) == "{"
        if calls and not (mark or unmarked):
            cursor.back(name)
            return calls
        if not (mark or unmarked):
            yield from cursor.expect("[CALL_ID]", "[ARGS]")
        cursor.begun = True
        if mark == "[CALL_ID]":
            yield from cursor.run(_SPACED_NAME, _LONGEST_NAME)
            yield from cursor.expect("[ARGS]")
        yield from cursor.space()
        calls.append(offered.call(name.strip(), (yield from cursor.json())))


def kimi_k2(cursor: Cursor, offered: Offered, start: str, end: str) -> Generator[None, None, Calls]:
    """`functions.name:0<|tool_call_argument_begin|>{...}`, each between markers."""
    calls: Calls = []
    while True:
        yield from cursor.space()
        yield from cursor.expect(KIMI_CALL)
        cursor.begun = True
        name, _ = yield from cursor.until("<|tool_call_argument_begin|>")
        yield from cursor.space()
        nothing = yield from cursor.follows("<|tool_call_end|>")
        arguments = {} if nothing else (yield from cursor.json())
        calls.append(offered.call(re.sub(r":\d+$", "", name.strip()), arguments))
        yield from cursor.space()
        yield from cursor.expect("<|tool_call_end|>")
        if (yield from cursor.end(end)):
            return calls
        # The marker before may be left out, and then the one after as well.
        if start == KIMI_CALL and not (yield from cursor.follows(KIMI_CALL)):
            return calls


def deepseek(
    cursor: Cursor, offered: Offered, start: str, end: str
) -> Generator[None, None, Calls]:
    """`name<|tool▁sep|>{...}`, with wide bars, each between markers.

    V3 and R1 write the type `function` there, followed by the name and a block of code.
    """
    separator, call_end = "<\uff5ctool▁sep\uff5c>", "<\uff5ctool▁call▁end\uff5c>"
    calls: Calls = []
    while True:
        yield from cursor.space()
        yield from cursor.expect(DEEPSEEK_CALL)
        cursor.begun = True
        name = yield from cursor.run(_SPACED_NAME, _LONGEST_NAME)
        yield from cursor.expect(separator)
        yield from cursor.space()
        fenced = False
        if (yield from cursor.peek()) != "{":
            if name.strip() != "function":
                raise NotACall(f"a call of the type {name.strip()!r}")
            name = yield from cursor.run(_SPACED_NAME, _LONGEST_NAME)
            fenced = bool((yield from cursor.take("```")))
            yield from cursor.take("json")
            yield from cursor.space()
        arguments = yield from cursor.json()
        yield from cursor.space()
        if fenced:
            yield from cursor.expect("```")
            yield from cursor.space()
        calls.append(offered.call(name.strip(), arguments))
        yield from cursor.expect(call_end)
        if (yield from cursor.end(end)):
            return calls
        # The marker before may be left out, and then the one after as well.
        if start == DEEPSEEK_CALL and not (yield from cursor.follows(DEEPSEEK_CALL)):
            return calls


def harmony(cursor: Cursor, offered: Offered, start: str, end: str) -> Generator[None, None, Calls]:
    """A message of gpt-oss to a function, from the function's name on."""
    cursor.begun = True
    name = yield from cursor.run(_NAME, _LONGEST_NAME)
    yield from cursor.until("<|message|>")
    yield from cursor.space()
    if name not in offered:
        raise NotACall(f"a function {name!r} was not offered")
    arguments = {} if (yield from cursor.follows(end)) else (yield from cursor.json())
    calls = [offered.call(name, arguments)]
    if not (yield from cursor.end(end, "<|end|>", "<|return|>", "<|start|>")):
        raise NotACall(f"{cursor.rest[:20]!r} follows the arguments")
    return calls


def called(value: Any, offered: Offered) -> Calls:
    """The calls that a JSON value represents.

    Raises:
        NotACall: it represents none, or contains something else.
    """
    values = value if isinstance(value, list) else [value]
    if not values:
        raise NotACall("the list holds no call")
    return [_call(item, offered) for item in values]


def _call(value: Any, offered: Offered) -> ToolCall:
    if not isinstance(value, dict):
        raise NotACall("a call is an object")
    if "tool_name" in value and "name" not in value:  # Command R's words
        value = {**value, "name": value["tool_name"]}
        del value["tool_name"]
        value.pop("tool_call_id", None)
    if isinstance(value.get("function"), dict) and value.keys() <= {"function", "id", "type"}:
        value = value["function"]  # as calls are written in a conversation
    if extra := value.keys() - _KEYS:
        raise NotACall(f"a call has no {sorted(extra)[0][:80]!r}")
    if "arguments" in value and "parameters" in value:
        raise NotACall("the call has both arguments and parameters")
    # Models that learnt from schemas write "parameters" at times.
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = exact_json(arguments) if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    return offered.call(value.get("name"), arguments)
