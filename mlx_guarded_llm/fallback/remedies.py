"""What to change before a model is asked again: the same greedy call gives the same answer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..params import SamplingParams
from ..results import Result

RESAMPLE_TEMPERATURE = 0.6  # for a greedy call, which would say the same again
LOOP_PENALTY = 1.15

Changes = dict[str, Any]


def remedy(
    reasons: tuple[str, ...], result: Result, options: Mapping[str, Any], *, cap: int
) -> Changes:
    """Options to change for the next attempt; empty when nothing would help.

    Args:
        reasons: why the answer is degraded.
        result: the answer.
        options: what it was asked with; "constrain" tells whether its form was held.
        cap: how far `max_tokens` may grow.
    """
    changes: Changes = {}
    for reason in reasons:
        changes |= _remedy(reason, result, options, cap)
    return changes


def resample(options: Mapping[str, Any], result: Result) -> Changes:
    """Another seed, derived from the caller's, so that the whole call can be repeated."""
    seed = options.get("seed")
    fresh = int.from_bytes(os.urandom(6)) if seed is None else (seed + 0x9E3779B9) % 2**64
    changes: Changes = {"seed": fresh}
    if not _used("temperature", options, result):
        changes["temperature"] = RESAMPLE_TEMPERATURE
    return changes


def _remedy(reason: str, result: Result, options: Mapping[str, Any], cap: int) -> Changes:
    if reason == "length":
        return _more_tokens(result, options, cap)
    if reason == "thinking":
        more = _more_tokens(result, options, cap)
        if more or options.get("thinking") is False:
            return more or resample(options, result)
        return {"thinking": False}
    if reason == "loop":
        penalty = (_used("repetition_penalty", options, result) or 1.0) * LOOP_PENALTY
        return {"repetition_penalty": round(penalty, 4), **resample(options, result)}
    if reason == "schema" and not options.get("constrain", True):
        return {"constrain": True}
    if reason in ("schema", "tool_call") and result.finish_reason == "length":
        return _more_tokens(result, options, cap)
    return resample(options, result)


def _used(name: str, options: Mapping[str, Any], result: Result) -> float | None:
    """A sampling option of the attempt: the caller's, or the one used in its place."""
    given = options.get(name)
    value: float | None = result.guard.sampling.get(name) if given is None else given
    return value


def _more_tokens(result: Result, options: Mapping[str, Any], cap: int) -> Changes:
    """Twice the limit, unless the context window cut the answer off.

    Empty where neither the limit nor the number of tokens is known: the new limit could be
    lower than the old one.
    """
    said = result.usage.completion_tokens
    if "max_tokens" not in options and not result.usage.known:
        return {}
    limit = max(options.get("max_tokens", SamplingParams.max_tokens), said)
    larger = min(2 * limit, cap)
    if larger <= limit or 0 < said < limit:
        return {}
    return {"max_tokens": larger}
