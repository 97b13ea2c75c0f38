"""How often, how long and with what pauses a model is asked again."""

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

DEFAULT_CAP = 8192


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """When to try again. Plain values: one policy serves any number of calls at once.

        from mlx_guarded_llm import RetryPolicy

        patient = RetryPolicy(attempts=5, deadline=300.0, max_tokens_cap=4096)

    Attributes:
        attempts: tries of each model, the first included; 1 does without retries.
        deadline: seconds for everything: queueing, loading, attempts and pauses.
        attempt_timeout: seconds for one attempt; None leaves it all that is left.
        initial_wait: seconds before the second attempt after an error; doubles with each.
            A degraded answer is tried again at once, because something is changed.
        max_wait: seconds between two attempts at most.
        jitter: up to so many seconds are added at random.
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
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
            if not (whole or (value is None and name == "max_tokens_cap")):
                raise InvalidRequest(f"{name} is {value!r}; it must be an integer, 1 or more.")
        for name in ("deadline", "attempt_timeout", "initial_wait", "max_wait", "jitter"):
            value = getattr(self, name)
            if value is None and name == "attempt_timeout":
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or math.isnan(value) or value < 0:
                raise InvalidRequest(f"{name} is {value!r}; it must be seconds, 0 or more.")

    def cap(self, asked: int | None) -> int:
        """How far `max_tokens` may grow, when the caller asked for so many."""
        if self.max_tokens_cap is not None:
            return self.max_tokens_cap
        return DEFAULT_CAP if asked is None else asked

    def strategy(
        self,
        *,
        again: Callable[[Any], bool],
        at_once: Callable[[Any], bool],
        attempts: int | None,
        seconds: float,
    ) -> dict[str, Any]:
        """Arguments for tenacity's `Retrying` and `AsyncRetrying` alike.

        Args:
            again: whether what an attempt returned asks for another one.
            at_once: whether that one needs no pause.
            attempts: at most so many; None goes on until the time is up.
            seconds: what is left of the deadline.
        """
        growing = wait_exponential(multiplier=self.initial_wait, max=self.max_wait)
        backoff = growing + wait_random(0, self.jitter)

        def wait(state: RetryCallState) -> float:
            assert state.outcome is not None
            return 0.0 if at_once(state.outcome.result()) else float(backoff(state))

        enough = stop_never if attempts is None else stop_after_attempt(attempts)
        return {
            "retry": retry_if_result(again),
            "stop": enough | stop_before_delay(seconds),
            "wait": wait,
            "retry_error_callback": lambda state: None,  # the course knows how it went
        }
