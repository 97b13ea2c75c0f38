"""When waiting requests are expected to start: asked for by callers, told with a full queue."""

from __future__ import annotations

import copy
import time
from typing import TypeVar

from ..errors import GuardedLLMError, LoadDeferredTimeout, QueueFull
from ..guard import Guard
from ..guard.forecast import Forecast, Newcomer, Work, forecast
from ..logs import get_logger
from ..record import phrases
from ..record.speeds import Speeds
from .listeners import Listeners
from .model_registry import ModelRegistry
from .pending import Pending
from .requests import Request

Told = TypeVar("Told", bound=GuardedLLMError)

logger = get_logger("backend")

FRESH = 1.0  # seconds for which one forecast serves everybody
SHARE = 0.05  # the most of the thread's time that forecasts take,
BURST = 1.0  # of so many seconds at once
_NEW = ""  # no request has this id


class Outlook:
    """Used by the dispatcher's thread only.

    Args:
        pending: what is under way.
        registry: knows how large models are.
        listeners: know how far a load has come.

    Attributes:
        speeds: as measured; whoever keeps events has it learn from each.
    """

    def __init__(self, pending: Pending, registry: ModelRegistry, listeners: Listeners) -> None:
        self.speeds = Speeds()
        self._pending = pending
        self._registry = registry
        self._listeners = listeners
        # With nobody new, or with one for a model, of a priority.
        self._made: dict[tuple[str, str] | None, tuple[float, Forecast]] = {}
        self._paid_until = 0.0  # forecasts have had their share of the time until then

    def wait(self, guard: Guard, name: str) -> float | None:
        """Seconds until this request starts, or the attempt that is made for it now.

        None if it does not wait, or nothing is known.
        """
        found = self._pending.find(name)
        if found is None or guard.status(found.id).started:
            return None
        age, made = self._forecast(guard, wanted=found.id)
        return _left(made.starts.get(found.id), age)

    def room(self, guard: Guard) -> float | None:
        """Seconds until the queue takes another request; None if that is unknown."""
        age, made = self._forecast(guard)
        return _left(made.room, age)

    def tell(self, guard: Guard, error: Told, request: Request) -> Told:
        """The error of a request, with when it may be asked again."""
        if not isinstance(error, QueueFull | LoadDeferredTimeout):
            return error
        new = None
        if request.key in self._registry.files:
            new = Newcomer(id=_NEW, model=request.key, priority=request.priority)
        age, made = self._forecast(guard, new)
        start = _left(made.starts.get(_NEW), age)
        if isinstance(error, LoadDeferredTimeout):
            error = copy.copy(error)  # all that waited for the load have the same
            error.retry_after = start
            return error
        error.expected_wait = start
        error.retry_after = _left(made.room, age)
        if error.retry_after is not None:
            when = phrases.about(error.retry_after)
            error.hint = error.hint.replace("Try again later", f"Try again in {when}")
        return error

    def _forecast(
        self, guard: Guard, new: Newcomer | None = None, *, wanted: str = ""
    ) -> tuple[float, Forecast]:
        """The seconds since a forecast was made, and the forecast."""
        key = (new.model, new.priority) if new is not None else None
        now = time.monotonic()
        at, made = self._made.get(key, (now, Forecast()))
        last = key in self._made and now - at < FRESH and (not wanted or wanted in made.starts)
        if not last and now >= self._paid_until:
            at, made = now, self._make(guard, now, new)
            self._made = {k: m for k, m in self._made.items() if now - m[0] < FRESH}
            self._made[key] = at, made
            cost = (time.monotonic() - now) / SHARE
            self._paid_until = max(self._paid_until, now - BURST) + cost
        return now - at, made

    def _make(self, guard: Guard, now: float, new: Newcomer | None) -> Forecast:
        try:
            return forecast(
                guard,
                now,
                self.speeds,
                work={r.id: _work(r) for r in self._pending.requests.values() if r.counted},
                sizes={key: files.load_bytes for key, files in self._registry.files.items()},
                loaded=self._listeners.loaded(),
                newcomers=[new] if new is not None else [],
            )
        except Exception:  # nobody's answer may depend on it
            logger.exception("the expected wait is unknown")
            return Forecast()


def _work(request: Request) -> Work:
    return Work(
        prompt_tokens=request.prompt_tokens,
        max_tokens=request.max_tokens,
        emitted=len(request.tokens),
    )


def _left(seconds: float | None, age: float) -> float | None:
    return None if seconds is None else max(seconds - age, 0.0)
