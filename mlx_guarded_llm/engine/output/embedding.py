"""One running request for vectors: from its texts to the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import GuardedLLMError, InvalidRequest, NonFiniteLogits, RequestCancelled
from ...models.spec import Progress
from ...results import FinishReason, Usage
from ..decode.microbatch import EncodedTexts
from ..protocol import Ended, Moved, PrepareTexts, Report
from ..residency.embeddable import check_tokens

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ..decode.encoder import Embedded

SLICE = 100_000  # characters to encode before other requests get a turn


@dataclass
class PreparedTexts:
    """A request whose texts are encoded.

    Attributes:
        entry: what the batch needs.
    """

    model: str
    entry: EncodedTexts


def encode_texts(tokenizer: TokenizerWrapper, command: PrepareTexts, encoded: EncodedTexts) -> bool:
    """Encode the next slice of a request's texts.

    Returns:
        Whether all are encoded.

    Raises:
        InvalidRequest: a text is longer than the model's window, or has no tokens.
    """
    import numpy as np

    texts, window = command.texts.texts, command.files.context_window
    characters = 0
    for i in range(len(encoded.texts), len(texts)):
        if characters > SLICE:
            return False
        characters += len(texts[i])
        ids = _ids(tokenizer, texts[i])
        if len(ids) > window and not command.texts.truncate:
            raise InvalidRequest(
                f"texts[{i}] has {len(ids)} tokens; {command.model} takes {window}.",
                hint="Split it, or pass truncate=True to embed only its beginning.",
            )
        if len(ids) > window:
            ids = _ids(tokenizer, texts[i], truncation=True, max_length=window)[:window]
        if not ids:
            raise InvalidRequest(f"texts[{i}] has no tokens.")
        check_tokens(ids, command.files)
        encoded.texts.append(np.array(ids, dtype=np.int32))
    return True


def _ids(tokenizer: TokenizerWrapper, text: str | Sequence[int], **cut: Any) -> list[int]:
    """The tokens of one text, which may be given as them.

    One text at a time: for a batch the tokenizer would start threads of its own, which warn
    whenever the process is forked afterwards.
    """
    if not isinstance(text, str):
        return list(text)
    return list(tokenizer.encode(text, verbose=False, **cut))


@dataclass
class Embedding:
    """A request that is in an `EncoderBatch`; see also `Generation`.

    Attributes:
        started: `time.monotonic()` seconds.
        cached_tokens: always 0; there is no prefix cache.
    """

    prepared: PreparedTexts
    started: float
    emit: Callable[[Report], None]
    cached_tokens: int = field(default=0, repr=False)

    @property
    def request_id(self) -> str:
        return self.prepared.entry.request_id

    @property
    def model(self) -> str:
        return self.prepared.model

    def take(self, update: Embedded) -> bool:
        """Handle an update of the batch. Returns whether the request is over."""
        import numpy as np

        encoded = update.encoded
        done, total = len(encoded.vectors), len(encoded.texts)
        self.emit(Moved(self.model, self.request_id, Progress("embed", done, total)))
        if done < total:
            return False
        vectors = np.stack([encoded.vectors[i] for i in range(total)])
        if not np.isfinite(vectors).all():
            self.fail(
                NonFiniteLogits(
                    f"{self.model} produced vectors that are not finite.",
                    hint="Its weights may be damaged, or its dtype too small for them.",
                )
            )
            return True
        self._end(value=vectors, usage=Usage(prompt_tokens=encoded.tokens, completion_tokens=0))
        return True

    def finish(self, reason: FinishReason) -> None:
        """It is stopped early. A part of the vectors would be of no use."""
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
