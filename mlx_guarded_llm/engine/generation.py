"""One running request of the engine: from a batch's updates to chunks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import GenerationFailed, GrammarFailed, GuardedLLMError, NonFiniteLogits
from ..models.spec import Progress
from ..results import Chunk, FinishReason, TokenLogprob, Usage
from .decoder import Prefilled, Token, Update
from .prepare import PreparedRequest
from .protocol import Delta, Ended, FirstToken, Moved, Report
from .text import Piece


@dataclass
class Generation:
    """What the engine knows of a request that is in a batch.

    Attributes:
        started: when it was, seconds of `time.monotonic()`.
        cached_tokens: prompt tokens that came from the prefix cache.
        tokens: tokens generated so far.
    """

    prepared: PreparedRequest
    started: float
    emit: Callable[[Report], None]
    cached_tokens: int = 0
    tokens: int = 0
    first_token: float | None = None

    @property
    def request_id(self) -> str:
        return self.prepared.job.request_id

    @property
    def model(self) -> str:
        return self.prepared.model

    def take(self, update: Update) -> bool:
        """Handle what the batch says. Returns whether the request is over."""
        if isinstance(update, Prefilled):
            progress = Progress("prefill", update.done, update.total)
            self.emit(Moved(self.model, self.request_id, progress))
            return False
        constraint = self.prepared.job.constraint
        if constraint is not None and constraint.error:
            self.fail(
                GrammarFailed(
                    f"the grammar of the answer cannot go on ({constraint.error}).",
                    hint="Make it simpler: fewer alternatives, bounded lengths.",
                )
            )
            return True
        if not math.isfinite(update.logprob):
            self.fail(
                NonFiniteLogits(
                    f"{self.model} produced logits that are not finite.",
                    hint="Its weights may be damaged, or its dtype too small for them.",
                )
            )
            return True
        try:
            return self._take_token(update)
        except Exception as error:
            self.fail(_unreadable(error))
            return True

    def _take_token(self, token: Token) -> bool:
        self.tokens += 1
        if self.first_token is None:
            self.first_token = time.monotonic()
            seconds = self.first_token - self.started
            self.emit(FirstToken(self.request_id, seconds, self.cached_tokens))
        text = self.prepared.text
        piece = None if token.finish_reason == "stop" else text.feed(token.token)
        if piece is not None or self.prepared.wants_logprobs:
            chunk = self._chunk(piece or Piece(), self._logprobs(token))
            self.emit(Delta(self.request_id, chunk))
        if piece is not None and piece.stopped:
            self.finish("stop")
            return True
        if token.finish_reason is not None:
            self.finish("stop" if token.finish_reason == "stop" else "length")
            return True
        return False

    def finish(self, reason: FinishReason) -> None:
        """Tell the last of it: what was held back, the reason, and the counts."""
        try:
            piece = self.prepared.text.finish(reason)
        except Exception as error:  # it fails this request only
            self.fail(_unreadable(error))
            return
        usage = Usage(len(self.prepared.job.prompt), self.tokens, self.cached_tokens)
        chunk = self._chunk(piece, (), finish_reason=piece.finish_reason or reason, usage=usage)
        self._end(chunk=chunk)

    def fail(self, error: GuardedLLMError) -> None:
        self._end(error=error)

    def _end(self, *, chunk: Chunk | None = None, error: GuardedLLMError | None = None) -> None:
        now = time.monotonic()
        first = self.first_token if self.first_token is not None else now
        self.emit(
            Ended(
                request_id=self.request_id,
                chunk=chunk,
                error=error,
                prefill=first - self.started,
                decode=now - first,
            )
        )

    def _logprobs(self, token: Token) -> tuple[TokenLogprob, ...]:
        if not self.prepared.wants_logprobs:
            return ()
        spell = self.prepared.spell
        top = tuple((i, spell(i), logprob) for i, logprob in token.top)
        return (TokenLogprob(token.token, spell(token.token), token.logprob, top),)

    @staticmethod
    def _chunk(
        piece: Piece,
        logprobs: tuple[TokenLogprob, ...],
        *,
        finish_reason: FinishReason | None = None,
        usage: Usage | None = None,
    ) -> Chunk:
        return Chunk(
            text=piece.text,
            reasoning=piece.reasoning,
            tool_calls=piece.tool_calls,
            invalid_tool_calls=piece.invalid_tool_calls,
            logprobs=logprobs,
            finish_reason=finish_reason,
            usage=usage,
        )


def _unreadable(error: Exception) -> GenerationFailed:
    return GenerationFailed(f"its text cannot be read ({type(error).__name__}: {error}).")
