"""Following one answer to its end, whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ..errors import RequestCancelled
from ..results import Chunk, Collector, Result
from .interrupt import on_interrupt
from .words import rate, seconds

if TYPE_CHECKING:
    from ..backend import Backend, Stream


def follow(backend: Backend, stream: Stream, show: Callable[[Chunk], None]) -> Result | None:
    """Take in a stream and show each piece; Ctrl-C ends the generation.

    Returns:
        The answer, with finish reason "cancelled" after Ctrl-C, or None if Ctrl-C
        came before there was any.
    """
    collector = Collector()
    with (
        closing(stream),
        on_interrupt(lambda: backend.cancel(stream.request_id)) as interrupt,
    ):
        try:
            for chunk in stream:
                collector.add(chunk)
                show(chunk)
        except RequestCancelled:
            if interrupt.pressed:
                return None
            raise
    return collector.result()


def as_json(result: Result) -> dict[str, Any]:
    """The answer as plain values."""
    usage, calls = result.usage, result.tool_calls
    return {
        "text": result.text,
        "reasoning": result.reasoning,
        "tool_calls": [
            {"id": call.id, "name": call.name, "arguments": dict(call.arguments)} for call in calls
        ],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "cached_tokens": usage.cached_tokens,
        },
        "finish_reason": result.finish_reason,
        "guard": result.guard.as_dict(),
    }


def unfinished(result: Result, max_tokens: int) -> str:
    """Why the answer is not a full one, in a sentence; "" when it is."""
    tokens = result.usage.completion_tokens
    match result.finish_reason:
        case "length" if tokens < max_tokens:
            return f"the answer is cut off after {tokens} tokens: the context window is full."
        case "length":
            return f"the answer is cut off after {tokens} tokens; raise --max-tokens for more."
        case "cancelled":
            return f"cancelled after {tokens} tokens; the answer is not complete."
        case _:
            return f"degraded: {', '.join(result.guard.degraded)}" if result.guard.degraded else ""


def guard_lines(result: Result) -> list[tuple[str, str]]:
    """Who answered and what it waited for, as (label, text) lines."""
    guard, usage = result.guard, result.usage
    served = guard.served_model
    if guard.requested_model != served:
        served += f" (asked for as {guard.requested_model})"
    waits = [
        f"{seconds(time)} {what}"
        for time, what in (
            (guard.queued, "queued"),
            (guard.deferred, "of that deferred"),
            (guard.loading, "loading"),
            (guard.paused, "paused"),
            (guard.recovering, "recovering"),
        )
        if time >= 0.005 or what in ("queued", "paused")
    ]
    speed = rate(usage.completion_tokens - 1, guard.decoding)
    tokens = f"{usage.prompt_tokens} prompt, {usage.completion_tokens} generated" + (
        f", {usage.cached_tokens} cached" if usage.cached_tokens else ""
    )
    lines = [
        ("answered by", served + (f" {guard.fingerprint[:12]}" if guard.fingerprint else "")),
        ("tokens", tokens + (f", {speed}" if speed else "")),
        ("waited", ", ".join(waits)),
        ("took", f"{seconds(guard.prefill)} prefill, {seconds(guard.decode)} decode"),
        ("ended by", result.finish_reason + (", resumed after a crash" if guard.resumed else "")),
    ]
    if guard.seed is not None:
        lines.append(("seed", str(guard.seed)))
    if guard.degraded:
        lines.append(("degraded", ", ".join(guard.degraded)))
    return lines
