"""What makes an answer degraded. Each check gives a word for `Provenance.degraded`.

    empty       nothing but spaces, although the model ended by itself
    thinking    cut off before its thinking ended
    length      cut off
    loop        cut off while repeating itself
    schema      not the JSON that was asked for
    tool_call   a tool call that cannot be read
    refused     the caller's own check says no
    cancelled   somebody stopped it

An answer that is cut off by a `max_tokens` of the caller's own is marked and nothing
else: it is what was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..results import Result

Accept = Callable[[Result], bool | None]

LOOP_CHARACTERS = 120  # less may be a list or a refrain
LOOP_REPEATS = 4
_TAIL = 4000  # characters; what a loop repeats is shorter by far


def judge(result: Result, options: Mapping[str, Any], accept: Accept | None) -> tuple[str, ...]:
    """Why an answer is degraded; empty when it is a full one.

    Args:
        result: the answer.
        options: what it was asked with, less what a remedy took away.
        accept: the caller's check. None and True accept. What it raises passes through.
    """
    if result.finish_reason == "cancelled":
        return ("cancelled",)
    reasons = [*_cut_off(result)]
    if _is_empty(result):
        reasons.append("empty")
    if result.invalid_tool_calls:
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


def tolerable(reasons: tuple[str, ...], options: Mapping[str, Any], *, capped: bool) -> bool:
    """Whether the answer is what was asked for, although it is not a full one.

    Args:
        reasons: what `judge` found.
        options: what it was asked with.
        capped: the policy says how far `max_tokens` may grow.
    """
    forced = options.get("tool_choice") not in (None, "auto", "none")
    formed = any(options.get(name) is not None for name in ("schema", "regex", "grammar"))
    shaped = forced or formed
    limited = "max_tokens" in options and not capped and not shaped
    return reasons == ("cancelled",) or (reasons == ("length",) and limited)


def matches(text: str, schema: Any) -> bool:
    """Whether a text is JSON that a schema allows."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    try:
        from jsonschema.validators import validator_for
    except ImportError:  # the schema held the answer while it was made, or made an error
        return True
    return bool(validator_for(schema)(schema).is_valid(value))


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
