"""GuardedLLM: one model with retries, fallbacks and provenance."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..backend.options import callback, choice, label, seconds, sort_options, switch
from ..errors import InvalidRequest
from ..json_values import plain_list, plain_number, shown
from ..models.naming import model_name
from ..results import Result
from .attempts import Attempts, FallbackPolicy, OnDegraded, OnFallback
from .candidate import Call, Candidate, LocalModel
from .checks import Accept
from .drivers import adrive, drive
from .policy import RetryPolicy
from .streams import AsyncGuardedStream, GuardedStream

if TYPE_CHECKING:
    from ..backend import BaseBackend
    from ..models import OnProgress


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
        model: the model to ask: the name of a local one, or a `Candidate`.
        fallbacks: the models to ask when that fails, in order; names or candidates. A name
            may have options in brackets: `phi3-mini[kv_bits=8]`.
        retry: how often to ask again, for how long, with what pauses.
        on_fallback: "raise" `FallbackRefused`, which carries the fallback's answer;
            "mark" returns it with `guard.fallback` set; "hold" keeps it, goes on asking
            the model until the deadline, and returns it, marked, only then.
        on_degraded: "raise" `DegradedAnswer`, which carries the best answer there was,
            or "mark" returns it with `guard.degraded` set.
        accept: called with each full answer; False asks for another one. So does a text,
            which the model is shown.
        hold_back: characters of a stream to keep until the first is passed on. Until
            then it can be tried again; `math.inf` keeps all of it.
        constrain: hold answers to their `schema` from the first attempt; False lets the
            model write freely first, checks, and holds it only after a mismatch.
        **defaults: options for every call, as `Backend.generate` takes them. Those that a
            model is loaded with (kv_bits, revision and so on) are for `model` alone.

    Raises:
        InvalidRequest: an argument is wrong.
    """

    def __init__(
        self,
        backend: BaseBackend | str | None,
        model: str | Path | Candidate,
        *,
        fallbacks: Sequence[str | Path | Candidate] = (),
        retry: RetryPolicy | None = None,
        on_fallback: OnFallback = "raise",
        on_degraded: OnDegraded = "raise",
        accept: Accept | None = None,
        hold_back: float = 0,
        constrain: bool = True,
        **defaults: Any,
    ) -> None:
        choice("on_fallback", on_fallback, get_args(OnFallback))
        choice("on_degraded", on_degraded, get_args(OnDegraded))
        number = isinstance(hold_back, (int, float)) and not isinstance(hold_back, bool)
        if not number or not plain_number(hold_back) >= 0:
            raise InvalidRequest(
                f"hold_back is {shown(hold_back)}; it must be characters, 0 or more."
            )
        if retry is not None and not isinstance(retry, RetryPolicy):
            raise InvalidRequest(f"retry is {shown(retry)}; it must be a RetryPolicy.")
        self.retry = retry or RetryPolicy()
        self.hold_back = plain_number(hold_back)
        self.accept = callback("accept", accept)
        given = sort_options(defaults)
        self.defaults = given.of_a_call
        self._policy = FallbackPolicy(
            candidates=(
                _candidate(backend, model, given.loading),
                *(
                    _candidate(backend, fallback, {})
                    for fallback in plain_list(fallbacks, "fallbacks", "models")
                ),
            ),
            retry=self.retry,
            on_fallback=on_fallback,
            on_degraded=on_degraded,
            constrain=switch("constrain", constrain),
        )
        self._running: dict[str, Attempts] = {}  # by request id

    @property
    def model(self) -> str:
        """The name of the model that is asked."""
        return self._policy.candidates[0].name

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, Any] | int],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        accept: Accept | None = None,
        **options: Any,
    ) -> Result:
        """Answer a prompt.

        Args:
            prompt: a string or OpenAI-style messages; or, with `raw=True`, ids of the model's
                own tokens, which no fallback is asked with.
            timeout: seconds for everything; the policy's deadline if that is sooner.
            request_id: its name in the record; later attempts add ".2", ".3" and so on.
            on_progress: called with the progress of downloads, loads and prefill.
            accept: as in the constructor, for this call.
            **options: as `Backend.generate` takes them; None counts as not given.

        Returns:
            The answer; `result.guard` says which model gave it, in how many attempts, and
            whether it is degraded.

        Raises:
            FallbackRefused: another model gave the only full answer.
            DegradedAnswer: no answer was a full one.
            AttemptsExhausted: there is no answer at all; `DeadlineExceeded` when time
                was the reason. Their `__cause__` is the last error.
            GuardedLLMError: an error after which no retry could succeed.
        """
        attempts = self._attempts(prompt, timeout, request_id, on_progress, accept, options)
        with self._listed(attempts):
            [result] = drive(attempts)
        assert isinstance(result, Result)
        return result

    async def agenerate(
        self,
        prompt: str | Sequence[Mapping[str, Any] | int],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        accept: Accept | None = None,
        **options: Any,
    ) -> Result:
        """As `generate`, without blocking the event loop. Cancelling the task cancels it."""
        attempts = self._attempts(prompt, timeout, request_id, on_progress, accept, options)
        with self._listed(attempts):
            [result] = [piece async for piece in adrive(attempts)]
        assert isinstance(result, Result)
        return result

    def stream(
        self,
        prompt: str | Sequence[Mapping[str, Any] | int],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        accept: Accept | None = None,
        **options: Any,
    ) -> GuardedStream:
        """Answer a prompt piece by piece. Takes and raises what `generate` does.

        Attempts end when the first piece is passed on (see `hold_back`). What goes
        wrong after that is raised at the end of the stream, so whoever reads all of it
        knows. A fallback's answer is passed on as it comes only with
        on_fallback="mark".
        """
        attempts = self._attempts(prompt, timeout, request_id, on_progress, accept, options)
        return GuardedStream(attempts, self.hold_back)

    def astream(
        self,
        prompt: str | Sequence[Mapping[str, Any] | int],
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        accept: Accept | None = None,
        **options: Any,
    ) -> AsyncGuardedStream:
        """As `stream`, for `async for`. Call it inside a running event loop."""
        attempts = self._attempts(prompt, timeout, request_id, on_progress, accept, options)
        return AsyncGuardedStream(attempts, self.hold_back)

    def cancel(self, request_id: str) -> None:
        """Stop a `generate` or `agenerate` by its request id, from any thread.

        A pause between attempts ends at once. Unknown and ended ones are ignored.
        """
        running = self._running.get(label("request_id", request_id))
        if running is not None:
            running.cancel()

    def _attempts(
        self,
        prompt: str | Sequence[Mapping[str, Any] | int],
        timeout: float | None,
        request_id: str | None,
        on_progress: OnProgress | None,
        accept: Accept | None,
        options: dict[str, Any],
    ) -> Attempts:
        name = "" if request_id is None else label("request_id", request_id)
        call = Call(
            prompt=prompt,
            options={**self.defaults, **_given(options)},
            timeout=math.inf if timeout is None else seconds("timeout", timeout),
            # Drawn, not counted: other programs may have requests of the same server.
            request_id=name or f"llm-{uuid.uuid4().hex[:16]}",
            on_progress=callback("on_progress", on_progress),
        )
        return Attempts(call, self._policy, callback("accept", accept) or self.accept)

    @contextmanager
    def _listed(self, attempts: Attempts) -> Iterator[None]:
        """Within it the call can be cancelled by its request id."""
        name = attempts.call.request_id
        self._running[name] = attempts
        try:
            yield
        finally:
            self._running.pop(name, None)


def _candidate(
    backend: BaseBackend | str | None, model: str | Path | Candidate, loading: Mapping[str, Any]
) -> Candidate:
    if isinstance(model, Candidate):
        if loading:
            raise InvalidRequest(
                f"{min(loading)} is given, but the model is a Candidate, which loads itself."
            )
        return model
    from ..backend.default_backend import as_backend, check_backend

    if backend is not None:
        check_backend(backend)
    named = model_name(model)
    return LocalModel(as_backend(backend), named, **loading)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call, without those at None.

    Raises:
        InvalidRequest: there is no such option, or it is the model's.
    """
    given = sort_options(options)
    if given.loading:
        raise InvalidRequest(
            f"{min(given.loading)} is what a model is loaded with, not what it is asked with.",
            hint="Give it to GuardedLLM, or name a model as in name[kv_bits=8].",
        )
    return given.of_a_call
