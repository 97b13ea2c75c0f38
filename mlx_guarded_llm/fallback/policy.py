"""How often a model is asked again, for how long, and with what pauses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tenacity import (
    RetryCallState,
    retry_if_result,
    stop_after_attempt,
    stop_before_delay,
    stop_never,
    wait_exponential,
    wait_random,
)

from ..errors import InvalidRequest
from ..json_values import BUILTIN, plain_number, shown

DEFAULT_CAP = 8192
MOST = 2**63 - 1  # attempts, or tokens
LONGEST = 1e300  # seconds, beyond which floats cannot count


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """When to try again. Plain values: one policy serves any number of calls at once.

        from mlx_guarded_llm import RetryPolicy

        patient = RetryPolicy(attempts=5, deadline=300.0, max_tokens_cap=4096)

    Attributes:
        attempts: how often each model is asked, the first time included; 1 means no retry.
        deadline: seconds for everything: queueing, loading, attempts and pauses.
        attempt_timeout: seconds for one attempt; None leaves it all that is left.
        initial_wait: seconds before the second attempt after an error; doubles with each. More
            where the error says when to ask again (`retry_after`).
            A degraded answer is tried again at once, because something is changed.
        max_wait: seconds between two attempts at most.
        jitter: a random time up to this many seconds is added.
        max_tokens_cap: how far `max_tokens` may grow for an answer that was cut off.
            None means 8192, but never beyond a `max_tokens` of the caller's.

    Raises:
        InvalidRequest: a value is out of its range.
    """

    attempts: int = 3
    deadline: float = 3600.0
    attempt_timeout: float | None = None
    initial_wait: float = 0.5
    max_wait: float = 30.0
    jitter: float = 0.5
    max_tokens_cap: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("attempts", 1), ("max_tokens_cap", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if whole and type(value) is not int:
                value = plain_number(value)
                object.__setattr__(self, name, value)
            whole = whole and least <= value <= MOST
            if not (whole or (value is None and name == "max_tokens_cap")):
                raise InvalidRequest(f"{name} is {shown(value)}; it must be an integer, 1 or more.")
        for name in ("deadline", "attempt_timeout", "initial_wait", "max_wait", "jitter"):
            value = getattr(self, name)
            if value is None and name == "attempt_timeout":
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and not (type(value) in BUILTIN and value <= LONGEST):
                value = plain_number(value)
                value = math.inf if value > LONGEST else value
                object.__setattr__(self, name, value)
            if not number or not value >= 0:  # NaN is not
                raise InvalidRequest(f"{name} is {shown(value)}; it must be seconds, 0 or more.")

    def cap(self, asked: int | None) -> int:
        """How far `max_tokens` may grow, given what the caller asked for."""
        if self.max_tokens_cap is not None:
            return self.max_tokens_cap
        return DEFAULT_CAP if asked is None else asked

    def strategy(
        self,
        *,
        again: Callable[[Any], bool],
        at_once: Callable[[Any], bool],
        not_before: Callable[[Any], float],
        attempts: int | None,
        seconds: float,
    ) -> dict[str, Any]:
        """Arguments for tenacity's `Retrying` and `AsyncRetrying` alike.

        Args:
            again: whether another attempt is worth making, by what the last one returned.
            at_once: whether it needs no pause.
            not_before: seconds that must pass first.
            attempts: the most there may be; None goes on until the time is up.
            seconds: what is left of the deadline.
        """
        growing = wait_exponential(multiplier=self.initial_wait, max=self.max_wait)
        backoff = growing + wait_random(0, self.jitter)

        def wait(state: RetryCallState) -> float:
            assert state.outcome is not None
            last = state.outcome.result()
            if at_once(last):
                return 0.0
            return max(float(backoff(state)), min(not_before(last), self.max_wait))

        enough = stop_never if attempts is None else stop_after_attempt(attempts)
        return {
            "retry": retry_if_result(again),
            "stop": enough | stop_before_delay(seconds),
            "wait": wait,
            "retry_error_callback": lambda state: None,  # `Attempts` knows how it went
        }
