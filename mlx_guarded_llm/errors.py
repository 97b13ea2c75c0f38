"""Every error this library raises on purpose.

    GuardedLLMError
    ├── InvalidRequest            the call itself is wrong
    │   ├── ContextOverflow       prompt + max_tokens exceed the context window
    │   ├── NoChatTemplate        chat messages for a model without a template
    │   ├── InvalidGrammar        a schema, expression or grammar no answer can be held to
    │   └── GrammarUnavailable    grammars need llguidance and a tokenizer it can read
    ├── ModelError
    │   ├── ModelNotFound         no alias, folder or repository of that name
    │   ├── ModelInvalid          a broken or half-fetched model folder
    │   ├── ModelUnsupported      architecture, quantisation or remote code
    │   │   └── DraftMismatch     a draft whose tokens mean other text than the model's
    │   ├── PullFailed            a download or an import that did not end
    │   ├── LoadFailed            MLX refused weights that looked sound
    │   └── ModelQuarantined      the engine died of it, again and again
    ├── MemoryRefused             it cannot fit; the message has the numbers
    ├── QueueFull                 the bounded queue has no place left
    ├── LoadDeferredTimeout       a load waited `load_wait` behind generations
    ├── RequestTimeout            the request's own deadline passed
    ├── RequestCancelled          somebody cancelled it
    ├── GenerationFailed          the batch that carried it was condemned
    │   ├── NonFiniteLogits       the model produced NaN
    │   ├── GrammarFailed         a grammar ran into its limits half-way
    │   └── PreparingFailed       its template or tokenizer does not come to an end with it
    ├── EngineDied                the engine is gone or no longer trustworthy
    ├── BackendClosed             used after close(), or in a forked child
    ├── ServerUnavailable         no server answers, or it went away in the middle of an answer
    ├── ServerRefused             a server refused the request, and would do so again
    ├── ServerAlreadyRunning      a user has one shared server at most
    ├── AttemptsExhausted         every attempt at every model failed
    │   └── DeadlineExceeded      the deadline over all attempts passed
    └── AnswerRefused             there is an answer, but not the one asked for
        ├── FallbackRefused       another model gave it
        └── DegradedAnswer        it is empty, cut off, looping or refused by a check

Each class carries its policy: `retryable` (the same call may succeed later) and
`fallback` (another model may answer instead). Each instance may carry a `hint`,
one sentence that tells what to do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from .holder import Holder

if TYPE_CHECKING:
    from .results import Provenance, Result


class GuardedLLMError(Exception):
    """Base of every error of this library.

    Attributes:
        retryable: the same call may succeed when tried again.
        fallback: it makes sense to ask another model.
        hint: one sentence that says what to do, or "".
        guard: what was tried before it was raised; None outside of `GuardedLLM`.
    """

    retryable: ClassVar[bool] = False
    fallback: ClassVar[bool] = False
    guard: Provenance | None = None

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders, so they rebuild without their constructor.
        return (rebuild, (type(self), self.args, self.__dict__.copy()))


def rebuild(
    cls: type[GuardedLLMError], args: tuple[object, ...], state: dict[str, object]
) -> GuardedLLMError:
    """An error that comes from another process: its class, its arguments and its attributes."""
    # By the built-in that gives the layout: MemoryError's own __new__ refuses our class.
    base: Any = cls
    while base.__module__ != "builtins":
        base = base.__base__
    error: GuardedLLMError = base.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidRequest(GuardedLLMError, ValueError):
    """A parameter or message of the call is wrong; nothing was started."""


class ContextOverflow(InvalidRequest):
    """The prompt, or prompt plus `max_tokens`, exceeds the context window.

    Attributes:
        prompt_tokens: tokens in the prompt.
        context_window: tokens the model can attend to.
    """

    fallback = True

    def __init__(
        self, message: str, *, prompt_tokens: int, context_window: int, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.prompt_tokens = prompt_tokens
        self.context_window = context_window


class NoChatTemplate(InvalidRequest):
    """Chat messages were sent to a model whose tokenizer has no chat template."""


class InvalidGrammar(InvalidRequest):
    """A schema, regular expression or grammar that no answer can be held to."""


class GrammarUnavailable(InvalidRequest):
    """An answer was to follow a grammar, which cannot be done here."""


class ModelError(GuardedLLMError):
    """Something is wrong with the model that was asked for."""

    fallback = True


class ModelNotFound(ModelError, LookupError):
    """No alias, folder or repository has this name."""


class ModelInvalid(ModelError):
    """The model folder is broken or half-fetched; it is never loaded."""


class ModelUnsupported(ModelError):
    """Sound files that this library or mlx-lm cannot run."""


class DraftMismatch(ModelUnsupported):
    """A draft whose tokenizer is not the model's: the same ids would mean other text."""


class PullFailed(ModelError):
    """Fetching or importing a model did not end; what arrived is kept."""

    retryable = True


class LoadFailed(ModelError):
    """MLX failed while loading weights that had passed every check."""

    retryable = True


class ModelQuarantined(ModelError):
    """The engine died of this model so often that it is not loaded any more.

    Attributes:
        model: its name.
        deaths: how often.
        stderr: the last that the engine wrote there before it died.
    """

    def __init__(
        self, message: str, *, model: str, deaths: int, stderr: str, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.model = model
        self.deaths = deaths
        self.stderr = stderr


class MemoryRefused(GuardedLLMError, MemoryError):
    """The model or the request cannot fit in the memory budget.

    Attributes:
        needed_bytes: what it would take.
        budget_bytes: what there is in all.
        held_by: other programs that hold so much of it that it does not fit; of a server, which
            names none, and of what never fits, ().
    """

    fallback = True
    held_by: tuple[Holder, ...] = ()

    def __init__(
        self,
        message: str,
        *,
        needed_bytes: int,
        budget_bytes: int,
        held_by: Sequence[Holder] = (),
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes
        self.held_by = tuple(held_by)


class QueueFull(GuardedLLMError):
    """The queue is at its bound; the request was not accepted.

    Attributes:
        expected_wait: seconds after which the request would start if there were a place for
            it; None if that is unknown.
        retry_after: seconds until there is a place; None as well.
    """

    retryable = True
    fallback = True
    expected_wait: float | None = None
    retry_after: float | None = None


class LoadDeferredTimeout(GuardedLLMError, TimeoutError):
    """A load waited `load_wait` seconds and generations were still running.

    Attributes:
        model: the model that was to be loaded.
        waited: seconds it waited.
        held_by: (request id, model) of each generation it waited for.
        retry_after: seconds until a request for the model would start; None if that is unknown.
    """

    retryable = True
    fallback = True
    retry_after: float | None = None

    def __init__(
        self,
        message: str,
        *,
        model: str,
        waited: float,
        held_by: Sequence[tuple[str, str]],
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.model = model
        self.waited = waited
        self.held_by = tuple(held_by)


class RequestTimeout(GuardedLLMError, TimeoutError):
    """The request's own deadline passed, wherever it then was."""

    retryable = True
    fallback = True


class RequestCancelled(GuardedLLMError):
    """The request was cancelled before it had an answer."""


class GenerationFailed(GuardedLLMError):
    """The generation broke; a batch that raised is condemned with all in it."""

    retryable = True
    fallback = True


class NonFiniteLogits(GenerationFailed):
    """The model produced NaN or infinite logits; its weights may be damaged."""

    retryable = False


class GrammarFailed(GenerationFailed):
    """The grammar of one answer ran into its limits; nobody else is concerned."""

    retryable = False


class PreparingFailed(GenerationFailed):
    """The prompt cannot be prepared: it takes too long, ends the engine, or breaks a tokenizer."""

    retryable = False


class EngineDied(GuardedLLMError):
    """The engine is gone, or said something after which it cannot be trusted."""

    retryable = True
    fallback = True


class BackendClosed(GuardedLLMError):
    """The backend was closed, or belongs to the process this one was forked from."""


class ServerUnavailable(GuardedLLMError):
    """A server that was asked does not answer, or went away in the middle of an answer.

    It is that of a remote backend, or one behind an `OpenAIModel`.

    Attributes:
        text: what had arrived of the answer.
        retry_after: seconds after which it wants to be asked again; None if it does not say.
    """

    retryable = True
    fallback = True
    retry_after: float | None = None

    def __init__(self, message: str, *, text: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.text = text


class ServerRefused(GuardedLLMError):
    """The server behind an `OpenAIModel` refused the request, and would do so again.

    Attributes:
        status: its HTTP status; None where it said so in the middle of a stream.
    """

    fallback = True

    def __init__(self, message: str, *, status: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class ServerAlreadyRunning(GuardedLLMError):
    """The shared server of this user runs already; see `mlx-guarded serve --background`."""


class AttemptsExhausted(GuardedLLMError):
    """Every attempt failed; `__cause__` is the last error of the model asked for.

    It is not retryable: its retries have been made. `guard.attempts` lists them.
    """

    fallback = True


class DeadlineExceeded(AttemptsExhausted, RequestTimeout):
    """The deadline over queueing, loading, attempts and sleeps passed."""

    retryable = False


class AnswerRefused(GuardedLLMError):
    """There is an answer, but it must not pass for the one that was asked for.

    Attributes:
        answer: it, marked: see `answer.guard`.
    """

    def __init__(self, message: str, *, answer: Result, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.answer = answer
        self.guard = answer.guard


class FallbackRefused(AnswerRefused):
    """The model asked for gave no full answer; the one here is a fallback's."""


class DegradedAnswer(AnswerRefused):
    """The best answer is degraded: empty, cut off, looping or refused by a check."""

    fallback = True

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, as in `Provenance.degraded`."""
        return self.answer.guard.degraded


def retry_after(value: str | None) -> float | None:
    """The seconds of a header `retry-after`; None where it is missing or a date."""
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
