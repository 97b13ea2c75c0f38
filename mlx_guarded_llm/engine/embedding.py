"""One running request for vectors: from its texts to what its caller gets."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import GuardedLLMError, InvalidRequest, NonFiniteLogits, RequestCancelled
from ..models.spec import Progress
from ..results import FinishReason, Usage
from .microbatch import EmbedJob
from .protocol import Ended, Moved, PrepareTexts, Report

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from .encoder import Embedded

SLICE = 100_000  # characters encoded before other requests are prepared


@dataclass
class PreparedTexts:
    """A request whose texts are encoded, or are being encoded.

    Attributes:
        job: what the batch needs.
    """

    model: str
    job: EmbedJob


def encode_texts(tokenizer: TokenizerWrapper, command: PrepareTexts, job: EmbedJob) -> bool:
    """Encode the next slice of a request's texts.

    Returns:
        Whether all are encoded.

    Raises:
        InvalidRequest: a text is longer than the model's window, or has no tokens.
    """
    import numpy as np

    texts, window = command.texts.texts, command.files.context_window
    characters = 0
    for i in range(len(job.texts), len(texts)):
        if characters > SLICE:
            return False
        characters += len(texts[i])
        # One at a time: a batch would start threads of the tokenizer's own, and those
        # warn whenever the process is forked afterwards.
        ids = tokenizer.encode(texts[i], verbose=False)
        if len(ids) > window and not command.texts.truncate:
            raise InvalidRequest(
                f"texts[{i}] has {len(ids)} tokens; {command.model} takes {window}.",
                hint="Split it, or pass truncate=True to embed only its beginning.",
            )
        if len(ids) > window:
            ids = tokenizer.encode(texts[i], truncation=True, max_length=window)
        if not ids:
            raise InvalidRequest(f"texts[{i}] has no tokens.")
        job.texts.append(np.array(ids, dtype=np.int32))
    return True


@dataclass
class Embedding:
    """What the engine knows of a request that is in an `EncoderBatch`.

    It is to texts what `Generation` is to a prompt.

    Attributes:
        started: when it was, seconds of `time.monotonic()`.
        cached_tokens: always 0; there is no prefix cache.
    """

    prepared: PreparedTexts
    started: float
    emit: Callable[[Report], None]
    cached_tokens: int = field(default=0, repr=False)

    @property
    def request_id(self) -> str:
        return self.prepared.job.request_id

    @property
    def model(self) -> str:
        return self.prepared.model

    def take(self, update: Embedded) -> bool:
        """Handle what the batch says. Returns whether the request is over."""
        import numpy as np

        job = update.job
        done, total = len(job.vectors), len(job.texts)
        self.emit(Moved(self.model, self.request_id, Progress("embed", done, total)))
        if done < total:
            return False
        vectors = np.stack([job.vectors[i] for i in range(total)])
        if not np.isfinite(vectors).all():
            self.fail(
                NonFiniteLogits(
                    f"{self.model} produced vectors that are not finite.",
                    hint="Its weights may be damaged, or its dtype too small for them.",
                )
            )
            return True
        self._end(value=vectors, usage=Usage(prompt_tokens=job.tokens, completion_tokens=0))
        return True

    def finish(self, reason: FinishReason) -> None:
        """It is stopped before its end: half of the vectors are of no use to anybody."""
        self.fail(RequestCancelled(f"request {self.request_id} was cancelled."))

    def fail(self, error: GuardedLLMError, *, out_of_memory: bool = False) -> None:
        self._end(error=error, out_of_memory=out_of_memory)

    def _end(
        self,
        *,
        value: object = None,
        usage: Usage | None = None,
        error: GuardedLLMError | None = None,
        out_of_memory: bool = False,
    ) -> None:
        self.emit(
            Ended(
                request_id=self.request_id,
                value=value,
                usage=usage,
                error=error,
                out_of_memory=out_of_memory,
                prefill=time.monotonic() - self.started,
            )
        )
