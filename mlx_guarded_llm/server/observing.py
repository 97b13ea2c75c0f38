"""What is seen of each question to a model: it is counted, and has a span."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import AnswerRefused, GuardedLLMError
from ..results import FinishReason, Provenance, Usage
from .tally import Tally
from .tracing import Span, span


class Seen:
    """One question, and what came of it."""

    def __init__(self, tally: Tally, span: Span) -> None:
        self._tally = tally
        self._span = span

    def answered(
        self, guard: Provenance | None, usage: Usage | None, finish_reason: FinishReason | None
    ) -> None:
        """The last of an answer is there."""
        if guard is None:
            return
        self._tally.answered(guard)
        self._span.answered(guard, usage, finish_reason)

    def failed(self, error: BaseException) -> None:
        """There is none, or none that may be used."""
        if isinstance(error, AnswerRefused):
            self._tally.answered(error.answer.guard)
        guard = error.guard if isinstance(error, GuardedLLMError) else None
        self._span.failed(error, guard)


@contextmanager
def observed(
    tally: Tally,
    *,
    operation: str,
    model: str,
    request_id: str,
    options: Mapping[str, Any],
    headers: Mapping[str, str],
) -> Iterator[Seen]:
    """See a question through to its end.

    Args:
        tally: counts it.
        operation: "chat", "text_completion" or "embeddings".
        model: that is asked.
        request_id: in the record.
        options: of sampling.
        headers: of the client's request, which may name a span around this one.
    """
    with span(operation, model, request_id, options, headers) as made:
        seen = Seen(tally, made)
        try:
            yield seen
        except (Exception, asyncio.CancelledError) as error:
            seen.failed(error)
            raise
