"""A result and its provenance as HTML."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ..record import phrases
from ..results import Provenance, Result, ToolCall, Usage
from . import html


def result_html(result: Result) -> str:
    """The answer with its thinking folded, its tool calls, and a line about its provenance."""
    return f"<div>{''.join(_parts(result))}</div>"


def provenance_html(guard: Provenance) -> str:
    """Which model answered, what it waited for, and all attempts."""
    tried = _attempts(guard) if len(guard.attempts) > 1 else ""
    return f"<div>{_line(guard, None)}{tried}</div>"


def _parts(result: Result) -> Iterator[str]:
    if result.reasoning:
        size = f"{len(result.reasoning.split()):,} words of thinking"
        yield html.folded(size, html.verbatim(result.reasoning.strip()))
    if result.text.strip():
        yield html.markdown(result.text)
    elif not (result.tool_calls or result.invalid_tool_calls):
        yield html.small("no text")
    for call in result.tool_calls:
        yield f"<div>calls <code>{html.text(_call(call))}</code></div>"
    for invalid in result.invalid_tool_calls:
        unreadable = html.alarm("a tool call that cannot be read:")
        yield f"<div>{unreadable} <code>{html.text(invalid.text)}</code></div>"
    yield _line(result.guard, result.usage)
    if len(result.guard.attempts) > 1:
        title = f"{len(result.guard.attempts)} attempts"
        opened = not result.guard.as_asked
        yield html.folded(title, _attempts(result.guard), opened=opened)


def _call(call: ToolCall) -> str:
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False, default=str)
    return f"{call.name}({arguments})"


def _line(guard: Provenance, usage: Usage | None) -> str:
    """Warnings about the answer in large letters, then its provenance in small ones."""
    warning = " ".join(html.alarm(f"{warning}.") for warning in _warnings(guard))
    waits = [
        (name, value)
        for name, value in (("deferred", guard.deferred), ("loading", guard.loading))
        if value >= _SHORTEST
    ]
    facts = [f"<b>{html.text(guard.served_model or 'no model')}</b>"]
    if guard.queued >= _SHORTEST:
        of_that = ", ".join(f"{name} {phrases.seconds(value)}" for name, value in waits)
        facts.append(f"queued {phrases.seconds(guard.queued)}{of_that and f' ({of_that})'}")
    if guard.prefill or guard.decode:
        facts.append(f"prefill {phrases.seconds(guard.prefill)}")
        facts.append(f"decode {phrases.seconds(guard.decode)}")
    if guard.paused >= _SHORTEST:
        facts.append(f"paused {phrases.seconds(guard.paused)}")
    if guard.recovering >= _SHORTEST:
        facts.append(f"recovering {phrases.seconds(guard.recovering)}")
    if usage is not None:
        facts.append(_tokens(guard, usage))
    if guard.resumed:
        facts.append("resumed after a crash")
    return (warning and f"<div>{warning}</div>") + html.small(" · ".join(facts))


_SHORTEST = 0.005  # seconds; less would be shown as 0.00


def _warnings(guard: Provenance) -> Iterator[str]:
    if guard.fallback:
        asked, served = html.text(guard.requested_model), html.text(guard.served_model)
        yield f"Fallback: {served} answered, not {asked}"
    if guard.degraded:
        yield f"Degraded: {html.text(', '.join(guard.degraded))}"


def _tokens(guard: Provenance, usage: Usage) -> str:
    text = f"{usage.prompt_tokens:,} + {usage.completion_tokens:,} tokens"
    if usage.completion_tokens > 1 and guard.decoding > 0:  # the first token comes from the prefill
        text += f" at {(usage.completion_tokens - 1) / guard.decoding:.3g} tokens/s"
    return text


def _attempts(guard: Provenance) -> str:
    head = ("", "model", "outcome", "why", "changed", "seconds", "tokens")
    rows = [
        (
            str(number),
            html.text(attempt.model),
            attempt.outcome if attempt.outcome == "ok" else html.alarm(html.text(attempt.outcome)),
            html.text(attempt.error or ", ".join(attempt.reasons)),
            html.text(", ".join(f"{k}={v!r}" for k, v in attempt.changed.items())),
            f"{attempt.seconds:.2f}",
            f"{attempt.tokens:,}",
        )
        for number, attempt in enumerate(guard.attempts, 1)
    ]
    return html.table(head, rows, numbers=(5, 6))
