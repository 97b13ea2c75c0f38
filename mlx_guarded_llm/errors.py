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
    │   │   └── HostUnavailable   a machine that is to have a part of it cannot be used
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
one sentence that tells what to do; `docs` is where its class is described.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
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

    What to do:
        Catch it to catch every error of this library; then `hint` says what to do.
    """

    retryable: ClassVar[bool] = False
    fallback: ClassVar[bool] = False
    guard: Provenance | None = None

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint
        self.add_note(f"See {self.docs}")  # below the message, in a traceback

    @property
    def docs(self) -> str:
        """Where its cause and cure are described: an address, or a file of the repository."""
        # Adapters derive classes of their own.
        ours = next(cls for cls in type(self).__mro__ if cls.__module__ == __name__)
        return f"{_page()}#{ours.__name__.lower()}"

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders, so they rebuild without their constructor.
        return (rebuild, (type(self), self.args, self.__dict__.copy()))


@cache
def _page() -> str:
    """The page of all errors, on the site that the distribution names."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        urls = metadata("mlx-guarded-llm").get_all("Project-URL") or ()
    except PackageNotFoundError:
        urls = ()
    for url in urls:
        label, _, site = url.partition(", ")
        if label == "Documentation":
            return f"{site.rstrip('/')}/reference/errors/"
    return "docs/reference/errors.md"


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
    """A parameter or message of the call is wrong; nothing was started.

    What to do:
        Correct what the message names. Sending the same again fails again.
    """


class ContextOverflow(InvalidRequest):
    """The prompt, or prompt plus `max_tokens`, exceeds the context window.

    Attributes:
        prompt_tokens: tokens in the prompt.
        context_window: tokens the model can attend to.

    What to do:
        Shorten the prompt or the conversation, lower `max_tokens`, or ask a model with a
        longer context. `context_window=` narrows the window of a model, and never widens
        it.
    """

    fallback = True

    def __init__(
        self, message: str, *, prompt_tokens: int, context_window: int, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.prompt_tokens = prompt_tokens
        self.context_window = context_window


class NoChatTemplate(InvalidRequest):
    """Chat messages were sent to a model whose tokenizer has no chat template.

    What to do:
        Ask an instruction-tuned model, usually named `-it`, `-instruct` or `-chat`. A base
        model continues text: pass one string, with `raw=True`.
    """


class InvalidGrammar(InvalidRequest):
    """A schema, regular expression or grammar that no answer can be held to.

    What to do:
        Simplify the schema as the message says. `GuardedLLM` and the adapters take more:
        they enforce the part of a schema that can be enforced, and check the answer for the
        rest.
    """


class GrammarUnavailable(InvalidRequest):
    """An answer was to follow a grammar, which cannot be done here.

    What to do:
        Install llguidance: `pip install "mlx-guarded-llm[grammar]"`. If the message speaks
        of the model, ask another one: this one's tokenizer or format cannot be held to a
        grammar.
    """


class ModelError(GuardedLLMError):
    """Something is wrong with the model that was asked for.

    What to do:
        Catch it to catch the errors of models below; their hints name the cure.
    """

    fallback = True


class ModelNotFound(ModelError, LookupError):
    """No alias, folder or repository has this name.

    What to do:
        Look at the names that the message suggests, or list them with `mlx-guarded models`.
        A repository of the hub is written `organisation/name`; for a private one run `hf
        auth login` first.
    """


class ModelInvalid(ModelError):
    """The model folder is broken or half-fetched; it is never loaded.

    What to do:
        Fetch the model again: `mlx-guarded rm NAME`, then `mlx-guarded pull NAME`. For a
        folder of your own, copy the file that is named from the original model.
    """


class ModelUnsupported(ModelError):
    """Sound files that this library or mlx-lm cannot run.

    What to do:
        Take a version of the model in safetensors, made for MLX, such as those of
        mlx-community. If the architecture is newer than your mlx-lm, update it.
    """


class DraftMismatch(ModelUnsupported):
    """A draft whose tokenizer is not the model's: the same ids would mean other text.

    What to do:
        Take a smaller model of the same family as the draft, or `draft="prompt"`, which
        needs no model.
    """


class PullFailed(ModelError):
    """Fetching or importing a model did not end; what arrived is kept.

    What to do:
        Check the network, the free space and the permissions that the message names, then
        try again: what arrived is kept. For a gated repository accept its terms on its
        page, then run `hf auth login`.
    """

    retryable = True


class LoadFailed(ModelError):
    """MLX failed while loading weights that had passed every check.

    What to do:
        Ask again: its files are checked anew. If it fails again, fetch the model again;
        `mlx-guarded doctor` shows whether MLX itself works.
    """

    retryable = True


class HostUnavailable(LoadFailed):
    """A machine over which the model is spread cannot be reached, or lacks something.

    What to do:
        - The message names the machine and has what it said. Try `ssh MACHINE true` from the
          first machine: it must succeed without a password.
        - The same version of this library must be there, and the model at the same path.
        - Leave `hosts` out, or name another model, while the machine is away.
    """


class ModelQuarantined(ModelError):
    """The engine died of this model so often that it is not loaded any more.

    Attributes:
        model: its name.
        deaths: how often.
        stderr: the last that the engine wrote there before it died.

    What to do:
        Look at `stderr` to see what the engine died of. `backend.forgive(model)` or
        `mlx-guarded forgive MODEL` lets it be loaded again.
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

    What to do:
        Lower `max_tokens` or the length of the prompt, unpin or unload another model, take
        a smaller or more strongly quantised one, or raise `memory_budget`. If `held_by`
        names other programs, end them or let all of them use one server.
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

    What to do:
        Ask again after `retry_after` seconds, or raise `max_queue`.
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

    What to do:
        Ask again later, raise `load_wait`, or use `on_load_deadline="pause"`, which lets
        the load run between two tokens of the others.
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
    """The request's own deadline passed, wherever it then was.

    What to do:
        Raise `timeout`, or ask for less. `backend.explain(request_id)` tells what the time
        went to.
    """

    retryable = True
    fallback = True


class RequestCancelled(GuardedLLMError):
    """The request was cancelled before it had an answer.

    What to do:
        Nothing: whoever cancelled it wanted no answer.
    """


class GenerationFailed(GuardedLLMError):
    """The generation broke; a batch that raised is condemned with all in it.

    What to do:
        Ask again: the batch was dropped, and the model starts anew.
    """

    retryable = True
    fallback = True


class NonFiniteLogits(GenerationFailed):
    """The model produced NaN or infinite logits; its weights may be damaged.

    What to do:
        Fetch the model again, or take a version in bfloat16: the range of float16 is too
        small for some models.
    """

    retryable = False


class GrammarFailed(GenerationFailed):
    """The grammar of one answer ran into its limits; nobody else is concerned.

    What to do:
        Make the schema or grammar simpler: fewer alternatives, and bounds on lengths and
        repetitions.
    """

    retryable = False


class PreparingFailed(GenerationFailed):
    """The prompt cannot be prepared: it takes too long, ends the engine, or breaks a tokenizer.

    What to do:
        Shorten the prompt. If short prompts fail as well, the model's chat template or
        tokenizer is broken: fetch the model again, or take another.
    """

    retryable = False


class EngineDied(GuardedLLMError):
    """The engine is gone, or said something after which it cannot be trusted.

    What to do:
        Ask again: a new engine starts by itself. If it keeps dying, `mlx-guarded doctor`
        tells whether MLX works on this machine; on Linux MLX needs one of the extras `cpu`,
        `cuda12` and `cuda13`.
    """

    retryable = True
    fallback = True


class BackendClosed(GuardedLLMError):
    """The backend was closed, or belongs to the process this one was forked from.

    What to do:
        Make another `Backend`, inside the process that uses it. Start child processes with
        the method `spawn`, not `fork`.
    """


class ServerUnavailable(GuardedLLMError):
    """A server that was asked does not answer, or went away in the middle of an answer.

    It is that of a remote backend, or one behind an `OpenAIModel`.

    Attributes:
        text: what had arrived of the answer.
        retry_after: seconds after which it wants to be asked again; None if it does not say.

    What to do:
        Check that the server runs and that the address is right: `mlx-guarded status`
        tells, `mlx-guarded serve --background` starts one. Then ask again.
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

    What to do:
        Read what the server said, in the message. 401 and 403 mean that the key is missing
        or may not use this model; 404 that the server has no model of that name.
    """

    fallback = True

    def __init__(self, message: str, *, status: int | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class ServerAlreadyRunning(GuardedLLMError):
    """The shared server of this user runs already; see `mlx-guarded serve --background`.

    What to do:
        Use the one that runs: programs find it by themselves. `mlx-guarded stop` ends it.
    """


class AttemptsExhausted(GuardedLLMError):
    """Every attempt failed; `__cause__` is the last error of the model asked for.

    It is not retryable: its retries have been made. `guard.attempts` lists them.

    What to do:
        Look at `guard.attempts`, or at `__cause__` for the last error, and cure that one.
        More `fallbacks` or a larger `RetryPolicy` help against temporary failures.
    """

    fallback = True


class DeadlineExceeded(AttemptsExhausted, RequestTimeout):
    """The deadline over queueing, loading, attempts and sleeps passed.

    What to do:
        Raise `RetryPolicy(deadline=...)`, or lower `attempts`.
    """

    retryable = False


class AnswerRefused(GuardedLLMError):
    """There is an answer, but it must not pass for the one that was asked for.

    Attributes:
        answer: it, marked: see `answer.guard`.

    What to do:
        The answer is in `answer`, and `answer.guard` says what is wrong with it.
    """

    def __init__(self, message: str, *, answer: Result, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.answer = answer
        self.guard = answer.guard


class FallbackRefused(AnswerRefused):
    """The model asked for gave no full answer; the one here is a fallback's.

    What to do:
        Look at `guard.attempts` for why the model asked for gave no answer.
        `on_fallback="mark"` returns the answer of the fallback, marked; `"hold"` keeps it
        while the model asked for is asked again.
    """


class DegradedAnswer(AnswerRefused):
    """The best answer is degraded: empty, cut off, looping or refused by a check.

    What to do:
        Look at `reasons`. Raise `max_tokens` for an answer that is cut off.
        `on_degraded="mark"` returns the answer, marked.
    """

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
