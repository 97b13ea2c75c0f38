"""One answer: following it to its end, printing it as it comes, and telling about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ..errors import RequestCancelled
from ..params import NEUTRAL
from ..record.phrases import rate, seconds
from ..results import Chunk, Collector, Result
from .console import out
from .interrupt import on_interrupt

if TYPE_CHECKING:
    from ..backend import BaseBackend, Stream
    from .progress import ProgressLine
    from .status_line import StatusLine


def follow(backend: BaseBackend, stream: Stream, show: Callable[[Chunk], None]) -> Result | None:
    """Read a stream and show each piece. Ctrl-C ends the generation.

    Returns:
        The answer, with finish reason "cancelled" after Ctrl-C; None if Ctrl-C came
        before there was any text.
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


class AnswerPrinter:
    """Prints an answer on stdout. On a terminal its thinking comes first, dimmed.

    Args:
        line: tells what goes on, and writes the pieces.
        quiet: print nothing.
    """

    def __init__(self, line: ProgressLine | StatusLine, *, quiet: bool = False) -> None:
        self._line = line
        self._quiet = quiet
        self._ends_line = True
        self._thinking = False

    def show(self, chunk: Chunk) -> None:
        """Write the next piece."""
        if self._quiet:
            return
        if chunk.reasoning and out().is_terminal:
            self._thinking = True
            self._line.write(chunk.reasoning, "dim")
        if chunk.text:
            if self._thinking:
                self._line.write("\n\n")
                self._thinking = False
            self._line.write(chunk.text)
            self._ends_line = chunk.text.endswith("\n")

    def end(self) -> None:
        """End the last line."""
        self._line.close()
        if not self._ends_line or self._thinking:
            self._line.write("\n")


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
            "reasoning_tokens": usage.reasoning_tokens,
            "drafted_tokens": usage.drafted_tokens,
            "accepted_tokens": usage.accepted_tokens,
        },
        "finish_reason": result.finish_reason,
        "guard": result.guard.as_dict(),
    }


def unfinished(result: Result, max_tokens: int) -> str:
    """Why the answer is not complete, in a sentence; "" if it is."""
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


def not_as_usual(result: Result) -> str:
    """Who else answered, and whether the engine died meanwhile, in a sentence; "" if neither."""
    guard = result.guard
    parts = []
    if guard.fallback:
        parts.append(f"answered by {guard.served_model} in place of {guard.requested_model}")
    if guard.resumed:
        parts.append("resumed after a crash")
    return f"{', '.join(parts)}." if parts else ""


def guard_lines(result: Result) -> list[tuple[str, str]]:
    """Which model answered and what it waited for, as (label, text) lines."""
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
    if usage.drafted_tokens:
        tokens += f", {usage.accepted_tokens} of {usage.drafted_tokens} drafted ones accepted"
    lines = [
        ("answered by", served + (f" {guard.fingerprint[:12]}" if guard.fingerprint else "")),
        ("tokens", tokens + (f", {speed}" if speed else "")),
        ("waited", ", ".join(waits)),
        ("took", f"{seconds(guard.prefill)} prefill, {seconds(guard.decode)} decode"),
        ("ended by", result.finish_reason + (", resumed after a crash" if guard.resumed else "")),
    ]
    if guard.sampling:
        lines.append(("sampled", _sampled(guard.sampling)))
    if guard.seed is not None:
        lines.append(("seed", str(guard.seed)))
    if guard.degraded:
        lines.append(("degraded", ", ".join(guard.degraded)))
    return lines


def _sampled(sampling: Mapping[str, Any]) -> str:
    """The sampling parameters, except those that have no effect."""
    shown = [f"{key} {value:g}" for key, value in sampling.items() if value != NEUTRAL.get(key)]
    return ", ".join(shown) if sampling.get("temperature") else ", ".join(["greedy", *shown])
