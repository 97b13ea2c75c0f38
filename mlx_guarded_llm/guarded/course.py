"""One call's way through attempts and models: every decision, and no waiting.

    turns       the model asked for, then the fallbacks, until one gives a full answer;
                with on_fallback="hold" then the model asked for again, until it does
    attempts    within a turn tenacity asks again while `Outcome.again` says so
    conclude    the answer asked for, or an error, or an answer marked as another

It knows nothing of threads and event loops: `GuardedLLM` drives it from both.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

from ..errors import (
    AttemptsExhausted,
    DeadlineExceeded,
    DegradedAnswer,
    FallbackRefused,
    GuardedLLMError,
    RequestCancelled,
    RequestTimeout,
)
from ..results import Attempt, Provenance, Result
from .candidate import Call, Candidate
from .checks import Accept, judge, tolerable
from .policy import RetryPolicy
from .remedies import remedy, resample

logger = logging.getLogger("mlx_guarded_llm.guarded")

OnFallback = Literal["raise", "mark", "hold"]
OnDegraded = Literal["raise", "mark"]

# From the least of evils to the greatest; the best degraded answer is kept.
_GRAVITY = ("length", "refused", "schema", "tool_call", "loop", "thinking", "empty")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What `GuardedLLM` was told, the same for all its calls."""

    candidates: tuple[Candidate, ...]
    policy: RetryPolicy
    on_fallback: OnFallback
    on_degraded: OnDegraded
    constrain: bool


@dataclass(frozen=True)
class Outcome:
    """How an attempt went.

    Attributes:
        result: its answer, marked; None after an error.
        full: the answer is what was asked for, up to the model that gave it.
        again: it is worth another attempt at the same model.
        at_once: that needs no pause, because something was changed.
    """

    result: Result | None = None
    full: bool = False
    again: bool = False
    at_once: bool = False


@dataclass(eq=False)
class Turn:
    """A model's turn: one or more attempts.

    Attributes:
        attempts: at most so many; None goes on until the deadline.
        changes: options that differ from what was asked for; remedies add to them.
    """

    candidate: Candidate
    attempts: int | None
    primary: bool
    changes: dict[str, Any] = field(default_factory=dict)


class Course:
    """The state of one call.

    Args:
        call: what was asked for.
        rules: of the `GuardedLLM`.
        accept: the caller's check.
    """

    def __init__(self, call: Call, rules: Rules, accept: Accept | None) -> None:
        self.call = call
        self._rules = rules
        self._accept = accept
        self._began = time.monotonic()
        self._ends = self._began + min(rules.policy.deadline, call.timeout)
        self._attempts: list[Attempt] = []
        self._answer: Result | None = None  # a full one of the model asked for
        self._insurance: Result | None = None  # a full one of a fallback
        self._degraded: dict[bool, Result] = {}  # the best, by whether it is a fallback's
        self._error: Exception | None = None  # the last of the model asked for
        self._hopeful = True  # the model asked for may yet answer
        self._attempt_began = self._began
        self.cancelled = False
        self.asking: tuple[Candidate, str] | None = None  # the attempt under way

    @property
    def may_pass_fallback(self) -> bool:
        """A fallback's answer may be passed on as it comes, and marked at its end."""
        return self._rules.on_fallback == "mark"

    # ---- the way through the models --------------------------------------------------

    def turns(self) -> Iterator[Turn]:
        """Whose turn it is, until there is nothing more to try."""
        primary, *others = self._rules.candidates
        first = Turn(primary, self._rules.policy.attempts, True)
        yield first
        if self._answer is not None or self._final(self._error):
            return
        for other in others:
            if self._over():
                return
            logger.warning("%s gave no full answer; asking %s", primary.name, other.name)
            yield Turn(other, self._rules.policy.attempts, False)
            if self._insurance is not None:
                break
        if self._rules.on_fallback == "hold" and self._insurance is not None and self._hopeful:
            first.attempts = None
            if not self._over():
                yield first

    def strategy(self, turn: Turn) -> dict[str, Any]:
        """Tenacity's arguments for a turn."""
        return self._rules.policy.strategy(
            again=lambda outcome: bool(outcome.again),
            at_once=lambda outcome: bool(outcome.at_once),
            attempts=turn.attempts,
            seconds=max(self._left(), 0.0),
        )

    def _over(self) -> bool:
        return self.cancelled or self._left() <= 0

    def _left(self) -> float:
        return self._ends - time.monotonic()

    # ---- one attempt -----------------------------------------------------------------

    def cancel(self) -> None:
        """Make no further attempt, and stop the one under way. From any thread."""
        self.cancelled = True
        if self.asking is not None:
            candidate, request_id = self.asking
            candidate.cancel(request_id)

    def begin(self, turn: Turn) -> Call:
        """The arguments of the next attempt.

        Raises:
            RequestCancelled: somebody cancelled the call meanwhile.
        """
        self._attempt_began = time.monotonic()
        if self.cancelled:
            raise RequestCancelled(f"request {self.call.request_id} was cancelled.")
        number = len(self._attempts) + 1
        name = self.call.request_id
        request_id = name if number == 1 else f"{name}.{number}"
        left = max(self._left(), 0.0)
        limit = self._rules.policy.attempt_timeout
        self.asking = turn.candidate, request_id
        return replace(
            self.call,
            options=self._sent(turn),
            timeout=left if limit is None else min(left, limit),
            request_id=request_id,
        )

    def judged(self, turn: Turn, call: Call, result: Result) -> Outcome:
        """An attempt gave an answer."""
        options = self._wanted(turn)
        reasons = judge(result, options, self._accept)
        asked = self.call.options
        capped = self._rules.policy.max_tokens_cap is not None
        full = not reasons or tolerable(reasons, asked, capped=capped)
        changes: dict[str, Any] = {}
        if not full:
            cap = self._rules.policy.cap(asked.get("max_tokens"))
            changes = remedy(reasons, result, options, cap=cap)
        helps = bool(changes)
        if turn.attempts is None and not full and not helps:
            changes = resample(options)  # it is waited for, whatever may help
        self._note(turn, call, reasons=reasons, tokens=result.usage.completion_tokens)
        result = replace(result, guard=self._mark(turn, result.guard, reasons))
        self._keep(turn, result, full=full)
        turn.changes |= changes
        return Outcome(result, full=full, again=bool(changes), at_once=helps)

    def failed(self, turn: Turn, call: Call | None, error: Exception) -> Outcome:
        """An attempt gave an error."""
        self._note(turn, call, error=_words(error))
        again = _retryable(error) and not self.cancelled
        if turn.primary:
            self._error = error
            self._hopeful = again
        return Outcome(again=again)

    def _sent(self, turn: Turn) -> dict[str, Any]:
        """What the candidate gets: a schema only while the form is to be held."""
        options = self._wanted(turn)
        if not options.pop("constrain"):
            options.pop("schema", None)
        return options

    def _wanted(self, turn: Turn) -> dict[str, Any]:
        return {**self.call.options, "constrain": self._rules.constrain, **turn.changes}

    def _note(
        self,
        turn: Turn,
        call: Call | None,
        *,
        reasons: tuple[str, ...] = (),
        error: str = "",
        tokens: int = 0,
    ) -> None:
        self.asking = None
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
            requested_model=self._rules.candidates[0].name,
            fallback=not turn.primary,
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
            if best is None or _gravity(result) < _gravity(best):
                self._degraded[not turn.primary] = result

    # ---- the end ---------------------------------------------------------------------

    def conclude(self) -> Result:
        """The answer that may be used.

        Raises:
            GuardedLLMError: there is none; see `GuardedLLM`.
        """
        if self._answer is not None:
            return self.settle(self._answer, full=True)
        if self._final(self._error) or self.cancelled:
            self._fail()
        if self._insurance is not None:
            return self.settle(self._insurance, full=True)
        for fallback in (False, True):
            if fallback in self._degraded:
                return self.settle(self._degraded[fallback], full=False)
        return self._fail()

    def settle(self, result: Result, *, full: bool) -> Result:
        """What becomes of this answer, if there is to be no other.

        Raises:
            FallbackRefused: it is a fallback's, and such are refused.
            DegradedAnswer: it is degraded, and such are refused.
        """
        result = self._complete(result)
        if result.guard.fallback:
            self._check_fallback(result)
        if not full:
            self._check_degraded(result)
        return result

    def broken(self, error: Exception) -> NoReturn:
        """A stream broke off after some of it had been passed on.

        Raises:
            AttemptsExhausted: always; `DeadlineExceeded` when time was the reason.
        """
        late = isinstance(error, RequestTimeout) and self._left() <= 0
        exhausted = (DeadlineExceeded if late else AttemptsExhausted)(
            f"the answer broke off after part of it was passed on ({_words(error)}).",
            hint="Discard that part; hold_back keeps the beginning until it is safer.",
        )
        raise self._with_guard(exhausted) from error

    def _complete(self, result: Result) -> Result:
        """With the attempts that came after it, too."""
        return replace(result, guard=replace(result.guard, attempts=tuple(self._attempts)))

    def _check_fallback(self, result: Result) -> None:
        if self._rules.on_fallback != "raise":
            return
        asked, why = self._rules.candidates[0].name, self._why()
        raise FallbackRefused(
            f"{asked} gave no full answer ({why}); {result.guard.served_model} did.",
            answer=result,
            hint='It is in .answer; on_fallback="mark" returns it, marked.',
        ) from self._error

    def _check_degraded(self, result: Result) -> None:
        if self._rules.on_degraded != "raise":
            return
        raise DegradedAnswer(
            f"the best answer of {result.guard.served_model} in {len(self._attempts)} attempts "
            f"is degraded: {', '.join(result.guard.degraded)}.",
            answer=result,
            hint='It is in .answer; on_degraded="mark" returns it, marked.',
        )

    def _fail(self) -> NoReturn:
        error = self._error
        if self.cancelled and not isinstance(error, RequestCancelled):
            error = RequestCancelled(f"request {self.call.request_id} was cancelled.")
        assert error is not None
        # Where nothing was tried again the error is as retryable as it says it is.
        untried = len(self._attempts) == 1 and self._rules.policy.attempts == 1
        alone = len(self._attempts) == 1 and not _retryable(error)
        if self.cancelled or self._final(error) or untried or alone:
            raise self._with_guard(error)
        kind = DeadlineExceeded if self._left() <= 0 else AttemptsExhausted
        raise self._with_guard(
            kind(
                f"{self._rules.candidates[0].name} gave no answer in "
                f"{len(self._attempts)} attempts and {time.monotonic() - self._began:.1f} s; "
                f"the last error: {_words(error)}"
            )
        ) from error

    def _final(self, error: Exception | None) -> bool:
        """No other model should be asked: the call itself is at fault."""
        return error is not None and not getattr(error, "fallback", True)

    def _why(self) -> str:
        if self._error is not None:
            return _words(self._error)
        return ", ".join(self._degraded[False].guard.degraded)

    def _with_guard(self, error: Exception) -> Exception:
        if isinstance(error, GuardedLLMError):
            error.guard = Provenance(
                request_id=self.call.request_id,
                requested_model=self._rules.candidates[0].name,
                served_model="",
                attempts=tuple(self._attempts),
            )
        return error


def _retryable(error: Exception) -> bool:
    return bool(getattr(error, "retryable", getattr(error, "is_retryable", False)))


def _gravity(result: Result) -> tuple[int, int]:
    worst = max((_GRAVITY.index(r) for r in result.guard.degraded if r in _GRAVITY), default=0)
    return worst, -len(result.text)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
