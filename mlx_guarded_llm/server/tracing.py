"""Spans by OpenTelemetry's conventions for generative AI, where its API is installed.

Without an SDK that the application sets up, the API does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..results import FinishReason, Provenance, Usage

try:
    from opentelemetry import propagate, trace
except ImportError:  # the extra `otel` is not installed
    trace = None  # type: ignore[assignment]

PROVIDER = "mlx_guarded_llm"
_REQUEST = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "stop": "stop_sequences",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
_TIMES = ("queued", "deferred", "loading", "prefill", "decode", "paused", "recovering")


class Span:
    """One span of OpenTelemetry, or none.

    Args:
        inner: it.
    """

    def __init__(self, inner: Any = None) -> None:
        self._inner = inner

    def answered(
        self, guard: Provenance, usage: Usage | None, finish_reason: FinishReason | None
    ) -> None:
        """The answer is there."""
        if self._inner is None:
            return
        self._tell(guard)
        if finish_reason is not None:
            self._inner.set_attribute("gen_ai.response.finish_reasons", [finish_reason])
        if usage is not None and usage.known:
            self._inner.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            self._inner.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)

    def failed(self, error: BaseException, guard: Provenance | None) -> None:
        """There is no answer. What the error says may hold some of one, so it stays here."""
        if self._inner is None:
            return
        if guard is not None:
            self._tell(guard)
        self._inner.set_attribute("error.type", type(error).__name__)
        self._inner.set_status(trace.StatusCode.ERROR)

    def _tell(self, guard: Provenance) -> None:
        told = {
            "gen_ai.response.model": guard.served_model,
            "mlx_guarded.fallback": guard.fallback,
            "mlx_guarded.degraded": list(guard.degraded),
            "mlx_guarded.attempts": len(guard.attempts),
            "mlx_guarded.resumed": guard.resumed,
            **{f"mlx_guarded.{name}_seconds": getattr(guard, name) for name in _TIMES},
        }
        self._inner.set_attributes(told)


@contextmanager
def span(
    operation: str,
    model: str,
    request_id: str,
    options: Mapping[str, Any],
    headers: Mapping[str, str],
) -> Iterator[Span]:
    """A span for as long as a question is open; see `observing.observed`."""
    if trace is None:
        yield Span()
        return
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.response.id": request_id,
    }
    for name, convention in _REQUEST.items():
        value = options.get(name)
        if value is not None:
            listed = name == "stop" and isinstance(value, str)
            attributes[f"gen_ai.request.{convention}"] = [value] if listed else value
    tracer = trace.get_tracer(PROVIDER)
    made = tracer.start_span(
        f"{operation} {model}",
        context=propagate.extract(headers),
        kind=trace.SpanKind.INTERNAL,
        attributes=attributes,
    )
    try:
        yield Span(made)
    finally:
        made.end()
