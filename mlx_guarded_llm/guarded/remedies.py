"""What to change before a model is asked again: the same greedy call is no retry."""

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


def resample(options: Mapping[str, Any]) -> Changes:
    """Another seed; following from the caller's, so that the whole can be repeated."""
    seed = options.get("seed")
    fresh = int.from_bytes(os.urandom(6)) if seed is None else (seed + 0x9E3779B9) % 2**64
    changes: Changes = {"seed": fresh}
    if not options.get("temperature"):
        changes["temperature"] = RESAMPLE_TEMPERATURE
    return changes


def _remedy(reason: str, result: Result, options: Mapping[str, Any], cap: int) -> Changes:
    if reason == "length":
        return _more_tokens(result, options, cap)
    if reason == "thinking":
        more = _more_tokens(result, options, cap)
        if more or options.get("thinking") is False:
            return more or resample(options)
        return {"thinking": False}
    if reason == "loop":
        penalty = (options.get("repetition_penalty") or 1.0) * LOOP_PENALTY
        return {"repetition_penalty": round(penalty, 4), **resample(options)}
    if reason == "schema" and not options.get("constrain", True):
        return {"constrain": True}
    if reason in ("schema", "tool_call") and result.finish_reason == "length":
        return _more_tokens(result, options, cap)
    return resample(options)


def _more_tokens(result: Result, options: Mapping[str, Any], cap: int) -> Changes:
    """Twice as many, unless the context window rather than the limit cut it off."""
    limit = options.get("max_tokens", SamplingParams.max_tokens)
    larger = min(2 * limit, cap)
    if larger <= limit or 0 < result.usage.completion_tokens < limit:
        return {}
    return {"max_tokens": larger}
