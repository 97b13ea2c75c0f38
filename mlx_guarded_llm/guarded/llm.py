"""GuardedLLM: one model with retries, fallbacks and provenance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

from tenacity import AsyncRetrying, Retrying

from ..backend.options import seconds, sort_options
from ..errors import InvalidRequest
from ..results import Result
from .candidate import Call, Candidate, LocalModel
from .checks import Accept
from .course import Course, OnDegraded, OnFallback, Outcome, Rules, Turn
from .policy import RetryPolicy
from .streams import AsyncGuardedStream, AsyncNap, GuardedStream, Interruptible, Nap

if TYPE_CHECKING:
    from ..backend import Backend
    from ..models import OnProgress

_ids = itertools.count(1)


class GuardedLLM:
    """Gives the answer of the model that was asked for, or says that it does not.

        from mlx_guarded_llm import Backend, GuardedLLM

        with Backend() as backend:
            llm = GuardedLLM(backend, "smollm2-135m", fallbacks=["smollm2-135m-bf16"])
            result = llm.generate("What is 6 times 7?", max_tokens=64)
            print(result.text, result.guard.as_asked, len(result.guard.attempts))

    Errors that may pass are retried with growing pauses. A degraded answer (empty, cut
    off, looping, not matching its schema, refused by `accept`) is asked for again with
    something changed: more tokens, another seed, a penalty. When the model cannot give
    a full answer the fallbacks are asked, and `on_fallback` says what becomes of theirs.

    Args:
        backend: runs local models; None takes the one shared by the process.
        model: who is asked: the name of a local model, or a `Candidate`.
        fallbacks: who is asked when that fails, in order; names or candidates.
        retry: how often, how long, with what pauses.
        on_fallback: "raise" `FallbackRefused`, which carries the fallback's answer;
            "mark" returns it with `guard.fallback` set; "hold" keeps it, goes on asking
            the model until the deadline, and returns it, marked, only then.
        on_degraded: "raise" `DegradedAnswer`, which carries the best answer there was,
            or "mark" returns it with `guard.degraded` set.
        accept: called with each full answer; False asks for another one.
        hold_back: characters of a stream to keep until the first is passed on. Until
            then it can be tried again; `math.inf` keeps all of it.
        constrain: hold answers to their `schema` from the first attempt; False lets the
            model write freely first, checks, and holds it only after a mismatch.
        **defaults: options for every call, as `Backend.generate` takes them.

    Raises:
        InvalidRequest: an argument is wrong.
    """

    def __init__(
        self,
        backend: Backend | None,
        model: str | Candidate,
        *,
        fallbacks: Sequence[str | Candidate] = (),
        retry: RetryPolicy | None = None,
        on_fallback: OnFallback = "raise",
        on_degraded: OnDegraded = "raise",
        accept: Accept | None = None,
        hold_back: float = 0,
        constrain: bool = True,
        **defaults: Any,
    ) -> None:
        _choice("on_fallback", on_fallback, OnFallback)
        _choice("on_degraded", on_degraded, OnDegraded)
        if accept is not None and not callable(accept):
            raise InvalidRequest(f"accept is {accept!r}; it must be a function of a Result.")
        if isinstance(hold_back, bool) or not isinstance(hold_back, (int, float)) or hold_back < 0:
            raise InvalidRequest(f"hold_back is {hold_back!r}; it must be characters, 0 or more.")
        if isinstance(fallbacks, str):
            raise InvalidRequest(f"fallbacks is {fallbacks!r}; it must be a list of models.")
        self.retry = retry or RetryPolicy()
        self.hold_back = hold_back
        self.accept = accept
        self.defaults = _given(defaults)
        self._rules = Rules(
            candidates=tuple(_candidate(backend, m) for m in (model, *fallbacks)),
            policy=self.retry,
            on_fallback=on_fallback,
            on_degraded=on_degraded,
            constrain=constrain,
        )
        self._running: dict[str, Interruptible] = {}  # by request id

    @property
    def model(self) -> str:
        """The name of the model that is asked."""
        return self._rules.candidates[0].name

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        accept: Accept | None = None,
        **options: Any,
    ) -> Result:
        """Answer a prompt.

        Args:
            prompt: a string or OpenAI-style messages.
            timeout: seconds for everything; the policy's deadline if that is sooner.
            request_id: its name in the record; later attempts add ".2", ".3" and so on.
            on_progress: told of downloads, loads and prefill.
            accept: as in the constructor, for this call.
            **options: as `Backend.generate` takes them; None counts as not given.

        Returns:
            The answer; `result.guard` tells who gave it, in how many attempts, and
            whether it is degraded.

        Raises:
            FallbackRefused: another model gave the only full answer.
            DegradedAnswer: no answer was a full one.
            AttemptsExhausted: there is no answer at all; `DeadlineExceeded` when time
                was the reason. Their `__cause__` is the last error.
            GuardedLLMError: an error that no retry mends, as it came.
        """
        course = self._course(prompt, timeout, request_id, on_progress, accept, options)
        nap = Nap()
        with _listed(self._running, course, nap):
            for turn in course.turns():
                Retrying(sleep=nap, **course.strategy(turn))(_attempt, course, turn)
            return course.conclude()

    async def agenerate(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        accept: Accept | None = None,
        **options: Any,
    ) -> Result:
        """As `generate`, without blocking the event loop. Cancelling the task cancels it."""
        course = self._course(prompt, timeout, request_id, on_progress, accept, options)
        nap = AsyncNap()
        with _listed(self._running, course, nap):
            for turn in course.turns():
                await AsyncRetrying(sleep=nap, **course.strategy(turn))(_aattempt, course, turn)
            return course.conclude()

    def stream(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        accept: Accept | None = None,
        **options: Any,
    ) -> GuardedStream:
        """Answer a prompt piece by piece. Takes and raises what `generate` does.

        Attempts end when the first piece is passed on (see `hold_back`). What goes
        wrong after that is raised at the end of the stream, so a consumer that reads
        all of it knows. A fallback's answer is passed on as it comes only with
        on_fallback="mark".
        """
        course = self._course(prompt, timeout, request_id, on_progress, accept, options)
        return GuardedStream(course, self.hold_back)

    def astream(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        accept: Accept | None = None,
        **options: Any,
    ) -> AsyncGuardedStream:
        """As `stream`, for `async for`. Call it inside a running event loop."""
        course = self._course(prompt, timeout, request_id, on_progress, accept, options)
        return AsyncGuardedStream(course, self.hold_back)

    def cancel(self, request_id: str) -> None:
        """Stop a `generate` or `agenerate` by its request id, from any thread.

        A pause between attempts ends at once. Unknown and ended ones are ignored.
        """
        running = self._running.get(request_id)
        if running is not None:
            running.cancel()

    def _course(
        self,
        prompt: str | Sequence[Mapping[str, Any]],
        timeout: float | None,
        request_id: str | None,
        on_progress: OnProgress | None,
        accept: Accept | None,
        options: dict[str, Any],
    ) -> Course:
        call = Call(
            prompt=prompt,
            options={**self.defaults, **_given(options)},
            timeout=math.inf if timeout is None else seconds("timeout", timeout),
            request_id=request_id or f"llm-{next(_ids)}",
            on_progress=on_progress,
        )
        return Course(call, self._rules, accept or self.accept)


@contextmanager
def _listed(
    running: dict[str, Interruptible], course: Course, nap: Nap | AsyncNap
) -> Iterator[None]:
    """Within it the call can be cancelled by its request id."""
    running[course.call.request_id] = Interruptible(course, nap)
    try:
        yield
    finally:
        running.pop(course.call.request_id, None)


def _attempt(course: Course, turn: Turn) -> Outcome:
    call = None
    try:
        call = course.begin(turn)
        result = turn.candidate.generate(call)
    except turn.candidate.errors as error:
        return course.failed(turn, call, error)
    return course.judged(turn, call, result)


async def _aattempt(course: Course, turn: Turn) -> Outcome:
    call = None
    try:
        call = course.begin(turn)
        result = await turn.candidate.agenerate(call)
    except turn.candidate.errors as error:
        return course.failed(turn, call, error)
    return course.judged(turn, call, result)


def _candidate(backend: Backend | None, model: str | Candidate) -> Candidate:
    if isinstance(model, Candidate):
        return model
    if not isinstance(model, str) or not model:
        raise InvalidRequest(f"the model is {model!r}; it must be a name or a Candidate.")
    if backend is None:
        from ..backend.shared import default_backend

        backend = default_backend()
    return LocalModel(backend, model)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Options without those at None, whose names are known.

    Raises:
        InvalidRequest: there is no such option.
    """
    sort_options(options)
    return {name: value for name, value in options.items() if value is not None}


def _choice(name: str, value: object, kind: Any) -> None:
    if value not in get_args(kind):
        words = " or ".join(repr(word) for word in get_args(kind))
        raise InvalidRequest(f"{name} is {value!r}; it must be {words}.")
