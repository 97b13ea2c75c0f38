"""One running request of the engine: from the updates of its batch to chunks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ...errors import GenerationFailed, GrammarFailed, GuardedLLMError, NonFiniteLogits
from ...models.spec import Progress
from ...results import Chunk, FinishReason, TokenLogprob, Usage
from ..decode.decoder import Prefilled, Token, Update
from ..prompt.prepare import PreparedRequest
from ..protocol import Delta, Ended, FirstToken, Moved, Report
from .pipeline import Piece


@dataclass
class Generation:
    """A request that is in a batch.

    Attributes:
        started: `time.monotonic()` seconds.
        cached_tokens: prompt tokens that were found in the prefix cache.
        tokens: tokens of the answer so far, including those of an earlier engine.
    """

    prepared: PreparedRequest
    started: float
    emit: Callable[[Report], None]
    cached_tokens: int = 0
    tokens: int = field(init=False)
    first_token: float | None = None
    _unsaid: list[int] = field(default_factory=list)  # tokens since the last piece

    def __post_init__(self) -> None:
        self.tokens = self.prepared.entry.emitted

    @property
    def request_id(self) -> str:
        return self.prepared.entry.request_id

    @property
    def model(self) -> str:
        return self.prepared.model

    def take(self, update: Update) -> bool:
        """Handle an update of the batch. Returns whether the request is over."""
        if isinstance(update, Prefilled):
            progress = Progress("prefill", update.done, update.total)
            self.emit(Moved(self.model, self.request_id, progress))
            return False
        constraint = self.prepared.entry.constraint
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
        self._unsaid.append(token.token)
        piece = None if token.finish_reason == "stop" else self.prepared.pipeline.feed(token.token)
        logprobs = self._logprobs(token)
        if token.finish_reason is not None or (piece is not None and piece.stopped):
            cut = token.finish_reason == "length" and not (piece is not None and piece.stopped)
            self.finish("length" if cut else "stop", piece or Piece(), logprobs)
            return True
        if piece is not None or logprobs:
            self.emit(Delta(self.request_id, self._chunk(piece or Piece(), logprobs)))
            self._unsaid.clear()
        return False

    def finish(
        self,
        reason: FinishReason,
        piece: Piece = Piece(),  # noqa: B008 - a tuple
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        """Emit the end: what was held back, the finish reason, and the counts.

        The piece of the last token is part of it. If it were emitted before, and the engine died in
        between, the next engine would emit it again.
        """
        try:
            last = self.prepared.pipeline.finish(reason)
        except Exception as error:  # only this request fails
            self.fail(_unreadable(error))
            return
        sequence = self.prepared.entry
        prompt_tokens = len(sequence.prompt) - sequence.emitted
        cached = min(self.cached_tokens, prompt_tokens)
        chunk = Chunk(
            text=piece.text + last.text,
            reasoning=piece.reasoning + last.reasoning,
            tool_calls=piece.tool_calls + last.tool_calls,
            invalid_tool_calls=piece.invalid_tool_calls + last.invalid_tool_calls,
            logprobs=logprobs,
            tokens=tuple(self._unsaid),
            finish_reason=last.finish_reason or reason,
            stop_string=self.prepared.pipeline.stop_string,
            usage=Usage(
                prompt_tokens,
                self.tokens,
                cached,
                self.prepared.pipeline.reasoning_tokens,
                sequence.drafted,
                sequence.accepted,
            ),
        )
        self._end(chunk=chunk)

    def fail(self, error: GuardedLLMError, *, out_of_memory: bool = False) -> None:
        self._end(error=error, out_of_memory=out_of_memory)

    def _end(
        self,
        *,
        chunk: Chunk | None = None,
        error: GuardedLLMError | None = None,
        out_of_memory: bool = False,
    ) -> None:
        now = time.monotonic()
        first = self.first_token if self.first_token is not None else now
        self.emit(
            Ended(
                request_id=self.request_id,
                chunk=chunk,
                error=error,
                out_of_memory=out_of_memory,
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

    def _chunk(self, piece: Piece, logprobs: tuple[TokenLogprob, ...]) -> Chunk:
        return Chunk(
            text=piece.text,
            reasoning=piece.reasoning,
            tool_calls=piece.tool_calls,
            invalid_tool_calls=piece.invalid_tool_calls,
            logprobs=logprobs,
            tokens=tuple(self._unsaid),
        )


def _unreadable(error: Exception) -> GenerationFailed:
    return GenerationFailed(f"its text cannot be read ({type(error).__name__}: {error}).")
