"""The attempts of one call: every decision, and no waiting.

    turns       the model asked for, then the fallbacks, until one gives a full answer;
                with on_fallback="hold" then the model asked for again, until it does
    attempts    within a turn tenacity asks again while `Outcome.again` says so
    conclude    the answer asked for, or an error, or an answer marked as another

`Attempts.steps` is a generator that says what is to be done next: ask a candidate, take the
next piece of its answer, pause, or pass something on to the caller. It knows nothing of
threads and event loops; `fallback.drivers` does what it says in either.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Literal, NoReturn

from tenacity import Retrying

from ..errors import (
    AttemptsExhausted,
    DeadlineExceeded,
    DegradedAnswer,
    FallbackRefused,
    GuardedLLMError,
    RequestCancelled,
    RequestTimeout,
)
from ..logs import get_logger
from ..request import are_token_ids
from ..results import Attempt, Chunk, Collector, Provenance, Result
from .candidate import Call, Candidate
from .checks import SEVERITY, Accept, capped, judge
from .feedback import with_feedback
from .policy import RetryPolicy
from .remedies import remedy, resample

logger = get_logger("guarded")

_SHOWN = 80  # characters of an answer in the text of an error

OnFallback = Literal["raise", "mark", "hold"]
OnDegraded = Literal["raise", "mark"]


@dataclass(frozen=True, kw_only=True)
class FallbackPolicy:
    """The settings of a `GuardedLLM`, the same for all its calls."""

    candidates: tuple[Candidate, ...]
    retry: RetryPolicy
    on_fallback: OnFallback
    on_degraded: OnDegraded
    constrain: bool


@dataclass(frozen=True)
class Outcome:
    """How an attempt went.

    Attributes:
        result: its answer, marked; None after an error.
        full: the answer is complete; whether it is of the right model does not count here.
        again: another attempt at the same model is worth making.
        at_once: it needs no pause, because something was changed.
        not_before: seconds that the pause has at least.
    """

    result: Result | None = None
    full: bool = False
    again: bool = False
    at_once: bool = False
    not_before: float = 0.0


@dataclass(eq=False)
class Turn:
    """A model's turn: one or more attempts.

    Attributes:
        candidate: the model.
        attempts: how many it gets at most; None goes on until the deadline.
        primary: it is the model that was asked for, not a fallback.
        changes: options that differ from the caller's; remedies add to them. "feedback" is
            not an option: it is what the caller's check said about `refused`.
        refused: the answer that the model is shown with the feedback.
    """

    candidate: Candidate
    attempts: int | None
    primary: bool
    changes: dict[str, Any] = field(default_factory=dict)
    refused: Result | None = None


@dataclass(frozen=True)
class Ask:
    """Ask for a whole answer, and send back the `Result`."""

    candidate: Candidate
    call: Call


@dataclass(frozen=True)
class Take:
    """Take the next piece of a stream, and send back the `Chunk`; None when it has ended."""

    stream: Any


@dataclass(frozen=True)
class Pause:
    """Wait, unless the call is cancelled meanwhile."""

    seconds: float


# A `Chunk` or a `Result` is for the caller. The driver carries out the others, sends back
# what came of it, and throws an error in where it was raised.
Step = Ask | Take | Pause | Chunk | Result
Steps = Generator[Step, Any, None]
Open = Callable[[Candidate, Call], Any]  # of a candidate's stream


class Attempts:
    """The state of one call.

    Args:
        call: what was asked for.
        policy: of the `GuardedLLM`.
        accept: the caller's check.

    Attributes:
        stream: the stream under way, when the answer is read piece by piece.
        wake: ends a pause, from any thread; whoever drives the steps sets it.
    """

    def __init__(self, call: Call, policy: FallbackPolicy, accept: Accept | None) -> None:
        self.call = call
        self.stream: Any = None
        self.wake: Callable[[], None] = lambda: None
        self._policy = policy
        self._accept = accept
        self._objection = ""  # why the caller's check refused the latest answer
        self._began = time.monotonic()
        self._ends = self._began + min(policy.retry.deadline, call.timeout)
        self._attempts: list[Attempt] = []
        self._answer: Result | None = None  # a full one of the model asked for
        self._insurance: Result | None = None  # a full one of a fallback
        self._degraded: dict[bool, Result] = {}  # the best, by whether it is a fallback's
        self._error: Exception | None = None  # the last of the model asked for
        self._hopeful = True  # the model asked for may yet answer
        self._attempt_began = self._began
        self._cancelled = False
        self._asking: tuple[Candidate, str] | None = None  # the attempt under way

    def cancel(self) -> None:
        """Make no further attempt, and stop the one under way. From any thread."""
        self._cancelled = True
        if self._asking is not None:
            candidate, request_id = self._asking
            candidate.cancel(request_id)
        self.wake()

    # ---- the steps -------------------------------------------------------------------

    def steps(self, open_: Open | None, hold_back: float) -> Steps:
        """What to do, one step after the other; the last is what the caller gets.

        Args:
            open_: opens a candidate's stream, whose pieces are passed on as they come. With
                None whole answers are asked for, and the one step to pass on is a `Result`.
            hold_back: characters of a stream to keep before the first piece is passed on.

        Raises:
            GuardedLLMError: there is no answer that may be used; see `GuardedLLM`.
        """
        for turn in self._turns():
            pauses: list[float] = []
            retrying = Retrying(sleep=pauses.append, **self._strategy(turn))
            try:
                for attempt in retrying:
                    if pauses:
                        yield Pause(pauses.pop())
                    outcome: Outcome | None
                    if open_ is None:
                        outcome = yield from self._whole(turn)
                    else:
                        outcome = yield from self._streamed(turn, open_, hold_back)
                    if outcome is None:
                        return
                    attempt.retry_state.set_result(outcome)
            finally:
                retrying.iter_state.reset()  # its actions are methods of its own: a cycle
        yield self._conclude()

    def _whole(self, turn: Turn) -> Generator[Step, Any, Outcome]:
        call = None
        try:
            call = self._begin(turn)
            result = yield Ask(turn.candidate, call)
        except turn.candidate.errors as error:
            return self._failed(turn, call, error)
        return self._judged(turn, call, result)

    def _streamed(
        self, turn: Turn, open_: Open, hold_back: float
    ) -> Generator[Step, Any, Outcome | None]:
        """As `_whole`; returns None once the answer was passed on, since no retry can follow."""
        # An answer that may be refused at its end is not passed on before.
        passable = turn.primary or self._policy.on_fallback == "mark"
        room = hold_back if passable else math.inf
        call, pieces, passing = None, Collector(), False
        try:
            call = self._begin(turn)
            self.stream = open_(turn.candidate, call)
            while (chunk := (yield Take(self.stream))) is not None:
                pieces.add(chunk)
                if chunk.finish_reason is not None:
                    break
                room -= _characters(chunk)
                if passing:
                    yield chunk
                elif room < 0:
                    passing = True
                    yield from tuple(pieces.chunks)
        except turn.candidate.errors as error:
            outcome = self._failed(turn, call, error)
            if passing:
                self._broken(error)
            return outcome
        outcome = self._judged(turn, call, pieces.result())
        if not passing:
            return outcome
        assert outcome.result is not None
        result = self._settle(outcome.result, primary=turn.primary, full=outcome.full)
        yield replace(pieces.chunks[-1], guard=result.guard)
        return None

    def _turns(self) -> Iterator[Turn]:
        """Whose turn it is, until there is nothing more to try."""
        primary, *others = self._policy.candidates
        first = Turn(primary, self._policy.retry.attempts, True)
        yield first
        if self._answer is not None or self._final(self._error):
            return
        if are_token_ids(self.call.prompt):
            others = []  # to another tokenizer they would be other words
        for other in others:
            if self._over():
                return
            logger.warning("%s gave no full answer; asking %s", primary.name, other.name)
            yield Turn(other, self._policy.retry.attempts, False)
            if self._insurance is not None:
                break
        if self._policy.on_fallback == "hold" and self._insurance is not None and self._hopeful:
            first.attempts = None
            if not self._over():
                yield first

    def _strategy(self, turn: Turn) -> dict[str, Any]:
        """Tenacity's arguments for a turn."""
        return self._policy.retry.strategy(
            again=attrgetter("again"),
            at_once=attrgetter("at_once"),
            not_before=attrgetter("not_before"),
            attempts=turn.attempts,
            seconds=max(self._left(), 0.0),
        )

    def _over(self) -> bool:
        return self._cancelled or self._left() <= 0

    def _left(self) -> float:
        return self._ends - time.monotonic()

    # ---- one attempt -----------------------------------------------------------------

    def _begin(self, turn: Turn) -> Call:
        """The arguments of the next attempt.

        Raises:
            RequestCancelled: somebody cancelled the call meanwhile.
        """
        self._attempt_began = time.monotonic()
        if self._cancelled:
            raise RequestCancelled(f"request {self.call.request_id} was cancelled.")
        number = len(self._attempts) + 1
        name = self.call.request_id
        request_id = name if number == 1 else f"{name}.{number}"
        left = max(self._left(), 0.0)
        limit = self._policy.retry.attempt_timeout
        self._asking = turn.candidate, request_id
        prompt = self.call.prompt
        if turn.refused is not None:
            prompt = with_feedback(prompt, turn.refused, turn.changes["feedback"])
        return replace(
            self.call,
            prompt=prompt,
            options=self._sent(turn),
            timeout=left if limit is None else min(left, limit),
            request_id=request_id,
        )

    def _judged(self, turn: Turn, call: Call, result: Result) -> Outcome:
        """An attempt gave an answer."""
        options = self._wanted(turn)
        result = turn.candidate.fitted(result, options)
        found = judge(result, options, self._check if self._accept else None)
        taken = turn.candidate.takes(self._sent(turn))
        asked = {k: v for k, v in self.call.options.items() if k != "max_tokens" or k in taken}
        may_grow = self._policy.retry.max_tokens_cap is not None
        if not may_grow and capped(result, found, asked):
            found = ()
            result = replace(result, guard=replace(result.guard, capped=True))
        # A candidate that is guarded itself has marked its answer. The mark stays, and a
        # fallback's answer that is marked is not a full one.
        reasons = tuple(dict.fromkeys((*result.guard.degraded, *found)))
        found = found if turn.primary else reasons
        full = found in ((), ("cancelled",))
        changes: dict[str, Any] = {}
        if not full:
            cap = self._policy.retry.cap(asked.get("max_tokens"))
            changes = self._effective(turn, remedy(found, result, options, cap=cap))
            changes = self._with_feedback(turn, changes, result)
        helps = bool(changes)
        if turn.attempts is None and not full and not helps:
            # This model is asked until the deadline, even where nothing is known to help.
            changes = self._effective(turn, resample(options, result))
        self._note(turn, call, reasons=reasons, tokens=result.usage.completion_tokens)
        result = replace(result, guard=self._mark(turn, result.guard, reasons))
        self._keep(turn, result, full=full)
        turn.changes |= changes
        return Outcome(result, full=full, again=bool(changes), at_once=helps)

    def _failed(self, turn: Turn, call: Call | None, error: Exception) -> Outcome:
        """An attempt gave an error."""
        self._note(turn, call, error=_described(error))
        again = turn.candidate.may_pass(error) and not self._cancelled
        if turn.primary:
            self._error = error
            self._hopeful = again
        return Outcome(again=again, not_before=getattr(error, "retry_after", None) or 0.0)

    def _check(self, result: Result) -> bool | None:
        """Call the caller's check, and keep what it says against the answer."""
        assert self._accept is not None
        verdict = self._accept(result)
        self._objection = verdict if isinstance(verdict, str) else ""
        return False if self._objection else verdict is not False

    def _with_feedback(self, turn: Turn, changes: dict[str, Any], result: Result) -> dict[str, Any]:
        """Add what the caller's check said; the first time that is change enough."""
        objection, self._objection = self._objection, ""
        asked = self.call.options
        continues = (asked.get("template_kwargs") or {}).get("continue_final_message")
        if not objection or asked.get("raw") or continues:
            return changes
        again = turn.changes.get("feedback") == objection
        turn.refused = result
        return {**(changes if again else {}), "feedback": objection}

    def _effective(self, turn: Turn, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The changes that reach the candidate: without any, another attempt is no retry."""
        before = turn.candidate.takes(self._sent(turn))
        after = turn.candidate.takes(self._sent(turn, changes))
        changed = {name for name in (*before, *after) if before.get(name) != after.get(name)}
        held = "schema" in changed  # "constrain" says whether the schema is sent
        return {
            name: after.get(name, value)
            for name, value in changes.items()
            if name in changed or (name == "constrain" and held)
        }

    def _sent(self, turn: Turn, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The options that the candidate gets: a schema only if it is to hold the answer to it."""
        options = {**self._wanted(turn), **(changes or {})}
        options.pop("feedback", None)
        if not options.pop("constrain"):
            options.pop("schema", None)
        return options

    def _wanted(self, turn: Turn) -> dict[str, Any]:
        return {**self.call.options, "constrain": self._policy.constrain, **turn.changes}

    def _note(
        self,
        turn: Turn,
        call: Call | None,
        *,
        reasons: tuple[str, ...] = (),
        error: str = "",
        tokens: int = 0,
    ) -> None:
        self._asking = None
        attempt = Attempt(
            model=turn.candidate.name,
            outcome="error" if error else "degraded" if reasons else "ok",
            reasons=reasons,
            error=error,
            seconds=time.monotonic() - self._attempt_began,
            tokens=tokens,
            request_id=call.request_id if call else "",
            changed=dict(turn.changes),
        )
        self._attempts.append(attempt)
        if attempt.outcome != "ok":
            why = error or ", ".join(reasons)
            logger.info("attempt %d at %s: %s", len(self._attempts), attempt.model, why)

    def _mark(self, turn: Turn, guard: Provenance, reasons: tuple[str, ...]) -> Provenance:
        return replace(
            guard,
            requested_model=self._policy.candidates[0].name,
            fallback=guard.fallback or not turn.primary,
            degraded=reasons,
            attempts=tuple(self._attempts),
        )

    def _keep(self, turn: Turn, result: Result, *, full: bool) -> None:
        if turn.primary:
            self._error, self._hopeful = None, True
        if full and turn.primary:
            self._answer = result
        elif full:
            self._insurance = result
        else:
            best = self._degraded.get(not turn.primary)
            if best is None or _severity(result) < _severity(best):
                self._degraded[not turn.primary] = result

    # ---- the end ---------------------------------------------------------------------

    def _conclude(self) -> Result:
        """The answer that may be used.

        Raises:
            GuardedLLMError: there is none; see `GuardedLLM`.
        """
        if self._answer is not None:
            return self._settle(self._answer, primary=True, full=True)
        if self._final(self._error) or self._cancelled:
            self._fail()
        if self._insurance is not None:
            return self._settle(self._insurance, primary=False, full=True)
        for fallback in (False, True):
            if fallback in self._degraded:
                return self._settle(self._degraded[fallback], primary=not fallback, full=False)
        return self._fail()

    def _settle(self, result: Result, *, primary: bool, full: bool) -> Result:
        """The answer as its caller gets it, when no other follows.

        Raises:
            FallbackRefused: it is a fallback's, and `on_fallback` is "raise".
            DegradedAnswer: it is degraded, and `on_degraded` is "raise".
        """
        result = self._complete(result)
        if not primary:
            self._check_fallback(result)
        if not full:
            self._check_degraded(result)
        return result

    def _broken(self, error: Exception) -> NoReturn:
        """A stream broke off after some of it had been passed on.

        Raises:
            AttemptsExhausted: always; `DeadlineExceeded` when time was the reason.
        """
        late = isinstance(error, RequestTimeout) and self._left() <= 0
        exhausted = (DeadlineExceeded if late else AttemptsExhausted)(
            f"the answer broke off after part of it was passed on ({_described(error)}).",
            hint="Discard that part; hold_back keeps the beginning until it is safer.",
        )
        raise self._with_guard(exhausted) from error

    def _complete(self, result: Result) -> Result:
        """The answer with all attempts, including those made after it."""
        return replace(result, guard=replace(result.guard, attempts=tuple(self._attempts)))

    def _check_fallback(self, result: Result) -> None:
        if self._policy.on_fallback != "raise":
            return
        asked, why = self._policy.candidates[0].name, self._why()
        raise FallbackRefused(
            f"{asked} gave no full answer ({why}); {result.guard.served_model} did"
            f"{_beginning(result)}.",
            answer=result,
            hint='It is in .answer; on_fallback="mark" returns it, marked.',
        ) from self._error

    def _check_degraded(self, result: Result) -> None:
        if self._policy.on_degraded != "raise":
            return
        raise DegradedAnswer(
            f"the best answer of {result.guard.served_model} in {len(self._attempts)} attempts "
            f"is degraded: {', '.join(result.guard.degraded)}{_beginning(result)}.",
            answer=result,
            hint='It is in .answer; on_degraded="mark" returns it, marked.',
        )

    def _fail(self) -> NoReturn:
        error = self._error
        if self._cancelled and not isinstance(error, RequestCancelled):
            error = RequestCancelled(f"request {self.call.request_id} was cancelled.")
        assert error is not None
        # An error that was not tried again keeps its own kind, and its own `retryable`.
        untried = len(self._attempts) == 1 and self._policy.retry.attempts == 1
        alone = len(self._attempts) == 1 and not self._hopeful
        if self._cancelled or self._final(error) or untried or alone:
            raise self._with_guard(error)
        kind = DeadlineExceeded if self._left() <= 0 else AttemptsExhausted
        raise self._with_guard(
            kind(
                f"{self._policy.candidates[0].name} gave no answer in "
                f"{len(self._attempts)} attempts and {time.monotonic() - self._began:.1f} s; "
                f"the last error: {_described(error)}{self._others()}"
            )
        ) from error

    def _others(self) -> str:
        """The last error of each fallback, for an error's text."""
        last = {attempt.model: attempt for attempt in self._attempts}
        names = (candidate.name for candidate in self._policy.candidates[1:])
        errors = [f"{name}: {last[name].error}" for name in names if name in last]
        return f"; of the fallbacks: {'; '.join(errors)}" if errors else ""

    def _final(self, error: Exception | None) -> bool:
        """The call itself is at fault, so no other model should be asked."""
        return error is not None and not getattr(error, "fallback", True)

    def _why(self) -> str:
        if self._error is not None:
            return _described(self._error)
        return ", ".join(self._degraded[False].guard.degraded)

    def _with_guard(self, error: Exception) -> Exception:
        if isinstance(error, GuardedLLMError):
            error.guard = Provenance(
                request_id=self.call.request_id,
                requested_model=self._policy.candidates[0].name,
                served_model="",
                attempts=tuple(self._attempts),
            )
        return error


def _severity(result: Result) -> tuple[int, int]:
    worst = max((SEVERITY.index(r) for r in result.guard.degraded if r in SEVERITY), default=0)
    return worst, -len(result.text)


def _beginning(result: Result) -> str:
    """The first characters of an answer, for an error's text."""
    text = " ".join(result.text.split())
    return f"; it begins {text[:_SHOWN]!r}" if text else ""


def _characters(chunk: Chunk) -> int:
    """How many characters of text, thinking and arguments a piece has."""
    arguments = sum(len(str(call.arguments)) for call in chunk.tool_calls)
    return len(chunk.text) + len(chunk.reasoning) + arguments


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
