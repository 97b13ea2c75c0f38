"""What makes an answer degraded: each check gives a reason for `Provenance.degraded`.

    empty       only spaces, although the model ended by itself
    thinking    cut off before its thinking ended
    length      cut off
    loop        cut off while repeating itself
    schema      not the JSON that was asked for
    tool_call   a call that cannot be read, of a tool that was not offered, or that does not
                fit its tool; or no call although one had to be made
    filtered    a provider's filter or its model refused
    unfinished  it ended for a reason of the provider's own: an error, a pause
    refused     the caller's own check says no
    cancelled   somebody stopped it

An answer that the caller's own `max_tokens` cuts off is not degraded: it is what was asked
for. `Provenance.capped` says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..grammar.validation import mismatch
from ..results import InvalidToolCall, Result, ToolCall
from ..tool_check import callable_tools, misfit

Accept = Callable[[Result], bool | str | None]

# From the least serious to the most; the least degraded answer is kept.
SEVERITY = (
    "length",
    "refused",
    "schema",
    "tool_call",
    "unfinished",
    "filtered",
    "loop",
    "thinking",
    "empty",
)

LOOP_CHARACTERS = 120  # less may be a list or a refrain
LOOP_REPEATS = 4
_TAIL = 4000  # characters; what a loop repeats is shorter by far
_UNUSABLE = {"content_filter": "filtered", "other": "unfinished"}


def judge(result: Result, options: Mapping[str, Any], accept: Accept | None) -> tuple[str, ...]:
    """Why an answer is degraded; empty when it is a full one.

    Args:
        result: the answer.
        options: what it was asked with, without what a remedy took away.
        accept: the caller's check. None and True accept, False and a text refuse. What it
            raises is not caught.
    """
    if result.finish_reason == "cancelled":
        return ("cancelled",)
    reasons = [*_cut_off(result)]
    if _is_empty(result):
        reasons.append("empty")
    if result.finish_reason in _UNUSABLE:
        reasons.append(_UNUSABLE[result.finish_reason])
    if result.invalid_tool_calls or (forces_call(options) and not result.tool_calls):
        reasons.append("tool_call")
    if (
        options.get("schema") is not None
        and not result.tool_calls
        and not matches(result.text, options["schema"])
    ):
        reasons.append("schema")
    if accept is not None and reasons in ([], ["length"]) and accept(result) is False:
        reasons.append("refused")
    return tuple(reasons)


def capped(result: Result, reasons: tuple[str, ...], options: Mapping[str, Any]) -> bool:
    """Whether the caller's own `max_tokens` is all that keeps an answer from being whole.

    False where the context window ended it, which happens below that limit, and where the
    answer must have a form, which a part of it does not have.

    Args:
        result: the answer.
        reasons: what `judge` found.
        options: what the caller asked for.
    """
    if reasons != ("length",) or "max_tokens" not in options or forces_call(options):
        return False
    if any(options.get(name) is not None for name in ("schema", "regex", "grammar")):
        return False
    return not 0 < result.usage.completion_tokens < options["max_tokens"]


def forces_call(options: Mapping[str, Any]) -> bool:
    """Whether a tool must be called."""
    return options.get("tool_choice") not in (None, "auto", "none")


def fitted(result: Result, options: Mapping[str, Any]) -> Result:
    """The answer with calls that fit no offered tool moved to the invalid ones.

    Nobody must run a call of a tool that does not exist, or with arguments that it does not
    take, whichever model made it.

    Args:
        result: the answer.
        options: what it was asked with.
    """
    tools = callable_tools(options.get("tools"), options.get("tool_choice"))
    bad = {
        i: why
        for i, call in enumerate(result.tool_calls)
        if (why := misfit(call.name, call.arguments, tools))
    }
    if not bad:
        return result
    calls = enumerate(result.tool_calls)
    return replace(
        result,
        tool_calls=tuple(call for i, call in calls if i not in bad),
        invalid_tool_calls=(
            *result.invalid_tool_calls,
            *(InvalidToolCall(written_call(result.tool_calls[i]), why) for i, why in bad.items()),
        ),
    )


def written_call(call: ToolCall) -> str:
    """A call as text."""
    return json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)


def matches(text: str, schema: Any) -> bool:
    """Whether a text is JSON that a schema allows."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return not mismatch(value, schema)


def repeats(text: str) -> bool:
    """Whether a text ends in the same words over and over."""
    tail = text[: -_TAIL - 1 : -1]  # reversed: its borders tell the period of the end
    border = [0] * len(tail)
    for i in range(1, len(tail)):
        k = border[i - 1]
        while k and tail[i] != tail[k]:
            k = border[k - 1]
        border[i] = k + (tail[i] == tail[k])
        length, period = i + 1, i + 1 - border[i]
        if length >= max(LOOP_CHARACTERS, LOOP_REPEATS * period):
            return True
    return False


def _is_empty(result: Result) -> bool:
    said = result.text.strip() or result.tool_calls or result.invalid_tool_calls
    return not said and result.finish_reason != "length"


def _cut_off(result: Result) -> tuple[str, ...]:
    if result.finish_reason != "length":
        return ()
    if repeats(result.text or result.reasoning):
        return ("loop",)
    if result.reasoning and not result.text.strip() and not result.tool_calls:
        return ("thinking",)
    return ("length",)
