"""The bounded record of events, which are also sent to Python's `logging`."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, get_args

from ..logs import get_logger
from . import phrases
from .events import Event, Kind

_LEVELS: dict[Kind, int] = {
    "request.queued": logging.DEBUG,
    "request.first_token": logging.DEBUG,
    "request.failed": logging.WARNING,
    "request.interrupted": logging.WARNING,
    "load.failed": logging.WARNING,
    "load.interrupted": logging.WARNING,
    "unload.failed": logging.WARNING,
    "run.failed": logging.WARNING,
    "engine.died": logging.WARNING,
    "engine.failed": logging.ERROR,
    "model.quarantined": logging.ERROR,
}
_LOGGERS: dict[Kind, logging.Logger] = {
    kind: get_logger(kind.partition(".")[0]) for kind in get_args(Kind)
}

# An event as it is kept: nothing but plain tuples, at which Python's garbage collector looks only
# once. A full collection through 100,000 events would stop the whole program for a good while.
_Packed = tuple[Any, ...]


class Record:
    """The last events, oldest first. It may be used from any thread.

    Args:
        maxlen: how many events to keep; the oldest are dropped.
    """

    def __init__(self, maxlen: int = 100_000) -> None:
        self._events: deque[_Packed] = deque(maxlen=maxlen)
        self._appended = 0
        self._lock = threading.Lock()
        self._followers: tuple[Callable[[], None], ...] = ()

    def append(self, event: Event) -> None:
        """Keep `event` and log it. Never raises because of a log handler."""
        with self._lock:
            self._events.append(_packed(event))
            self._appended += 1
            followers = self._followers
        # Outside the lock: a handler may read the record.
        log(event)
        for follower in followers:
            follower()

    def events(self) -> tuple[Event, ...]:
        """The events that are kept, oldest first."""
        with self._lock:
            kept = tuple(self._events)
        return tuple(_events(kept))

    def since(self, position: int) -> tuple[tuple[Event, ...], int]:
        """The events after a position, and the position after them.

        The first event has position 0, whether it is still kept or not. The returned
        position less the number of returned events is above `position` where some in between
        were dropped. It reads only what is new, so it may be called often.

        Args:
            position: one that this returned before, or 0; a negative one is so many events
                before the end.
        """
        with self._lock:
            appended = self._appended
            wanted = -position if position < 0 else max(appended - position, 0)
            last = self._last(min(wanted, len(self._events)))
        return tuple(_events(last)), appended

    def latest(self, count: int) -> tuple[Event, ...]:
        """The last `count` events, oldest first, without a copy of all the others."""
        with self._lock:
            last = self._last(count)
        return tuple(_events(last))

    def latest_first(self, count: int) -> Iterator[Event]:
        """The last `count` events as they are now, newest first; each is made when it is read."""
        with self._lock:
            last = self._last(count)
        return _events(reversed(last))

    def _last(self, count: int) -> tuple[_Packed, ...]:
        return tuple(islice(reversed(self._events), count))[::-1]

    def follow(self, follower: Callable[[], None]) -> Callable[[], None]:
        """Have a function called after each event, until what this returns is called.

        Args:
            follower: called by whoever appends, so it must neither block nor raise.
        """
        with self._lock:
            self._followers = (*self._followers, follower)

        def leave() -> None:
            with self._lock:
                self._followers = tuple(f for f in self._followers if f is not follower)

        return leave

    @property
    def dropped(self) -> int:
        """How many events have been dropped."""
        with self._lock:
            return self._appended - len(self._events)

    def __len__(self) -> int:
        return len(self._events)


def _packed(event: Event) -> _Packed:
    return (*event[:-1], tuple(event.details.items()))


def _events(packed: Iterable[_Packed]) -> Iterator[Event]:
    return (Event._make((*kept[:-1], dict(kept[-1]))) for kept in packed)


def log(event: Event) -> None:
    """Send `event` to the logger of its subject, such as "mlx_guarded_llm.load".

    The log record has the event's fields with the prefix `guard_`, which avoids the names
    that log records, filters and formatters use.
    """
    logger = _LOGGERS[event.kind]
    level = level_of(event.kind)
    if level == logging.WARNING and cancelled(event):
        level = logging.INFO
    if not logger.isEnabledFor(level):
        return
    try:
        fields = {f"guard_{name}": value for name, value in event._asdict().items()}
        logger.log(level, "%s", line(event), extra=fields)
    except BaseException:
        # A handler or filter of the application failed. The event is in the record, and
        # the guard must go on.
        pass


def level_of(kind: Kind) -> int:
    """The level at which events of a kind are logged; a cancelled request is logged at INFO."""
    return _LEVELS.get(kind, logging.INFO)


def cancelled(event: Event) -> bool:
    """Whether this end of a request is a cancellation, however it was reported."""
    return event.cause == "cancelled" or event.cause.startswith("RequestCancelled")


def line(event: Event) -> str:
    """The event as one line of text."""
    subject, _, verb = event.kind.partition(".")
    match subject:
        case "request":
            text = _request(event, verb)
        case "engine":
            text = _engine(event, verb)
        case "model":
            text = f"{event.model} {verb}" + phrases.because(event.cause)
        case _:
            text = _job(event, subject, verb)
    return phrases.one_line(text)


def _engine(event: Event, verb: str) -> str:
    text = f"engine {verb}"
    if verb == "died":
        text += _after(event, "lived")
    made = phrases.parts(event.details, "spawn", "import")
    return text + (f" ({made})" if made else "") + phrases.because(event.cause)


def _request(event: Event, verb: str) -> str:
    name = phrases.who([(event.request_id or "?", event.model or "")])
    match verb:
        case "started" if phrases.number(event.details, "recovering") is not None:
            return f"{name} went on" + _after(event, "recovering")
        case "started":
            return f"{name} started" + _after(event, "queued")
        case "first_token":
            return f"{name} has its first token"
        case "resumed":
            return f"{name} resumed"
        case "interrupted":
            emitted = phrases.count(event.details, "emitted")
            tokens = f" after {emitted} tokens" if emitted else ""
            return f"{name} interrupted" + tokens + phrases.because(event.cause)
        case "finished":
            counts, took = phrases.tokens(event.details), phrases.took(event.details)
            return (
                f"{name} finished"
                + (f" ({event.cause})" if event.cause else "")
                + phrases.because(counts)
                + (f" in {phrases.seconds(took)}" if took is not None else "")
            )
        case "failed" if cancelled(event):
            return f"{name} cancelled" + phrases.because(phrases.without_class(event.cause))
        case _:
            return f"{name} {verb}" + _behind(event) + phrases.because(event.cause)


def _job(event: Event, subject: str, verb: str) -> str:
    name = f"{subject} of {event.model}" if event.model else f"{subject} {event.job_id or ''}"
    match verb:
        case "queued":
            asker = f", asked for by {event.request_id}"
            return f"{name} queued" + (asker if event.request_id else phrases.because(event.cause))
        case "deferred":
            return (
                f"{name} deferred" + (f" ({event.cause})" if event.cause else "") + _behind(event)
            )
        case "started":
            evict, paused = event.details.get("evict"), event.details.get("paused")
            return (
                f"{name} started"
                + _after(event, "waited")
                + (f", evicts {phrases.listing(evict)}" if evict else "")
                + (f", with {phrases.listing(paused)} paused" if paused else "")
            )
        case "finished":
            return f"{name} finished" + phrases.because(phrases.loaded(event.details))
        case _:
            return f"{name} {verb}" + phrases.because(event.cause)


def _behind(event: Event) -> str:
    return f" behind {phrases.who(event.waiting_for)}" if event.waiting_for else ""


def _after(event: Event, key: str) -> str:
    waited = phrases.number(event.details, key)
    return f" after {phrases.seconds(waited)}" if waited is not None and waited >= 0.005 else ""
