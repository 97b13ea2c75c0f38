"""The bounded record of events, and its echo in the standard `logging` of Python."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import get_args

from . import words
from .events import Event, Kind

LOGGER = "mlx_guarded_llm"

# A library leaves it to the application whether and where its log is seen.
logging.getLogger(LOGGER).addHandler(logging.NullHandler())

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
    kind: logging.getLogger(f"{LOGGER}.{kind.partition('.')[0]}") for kind in get_args(Kind)
}


class Record:
    """The last events, oldest first. Any thread may append and read.

    Args:
        maxlen: how many events to keep; older ones are dropped.
    """

    def __init__(self, maxlen: int = 100_000) -> None:
        self._events: deque[Event] = deque(maxlen=maxlen)
        self._appended = 0
        self._lock = threading.Lock()

    def append(self, event: Event) -> None:
        """Keep `event` and log it. Never raises because of a log handler."""
        with self._lock:
            self._events.append(event)
            self._appended += 1
        # Outside the lock: a handler may read the record.
        log(event)

    def events(self) -> tuple[Event, ...]:
        """What is kept, oldest first."""
        with self._lock:
            return tuple(self._events)

    @property
    def dropped(self) -> int:
        """How many events were dropped to keep the bound."""
        with self._lock:
            return self._appended - len(self._events)

    def __len__(self) -> int:
        return len(self._events)


def log(event: Event) -> None:
    """Send `event` to the logger of its subject, such as "mlx_guarded_llm.load".

    The log record carries the event's fields with the prefix `guard_`, which no
    attribute of a log record and no usual filter or formatter has.
    """
    logger = _LOGGERS[event.kind]
    level = _LEVELS.get(event.kind, logging.INFO)
    if level == logging.WARNING and cancelled(event):
        level = logging.INFO
    if not logger.isEnabledFor(level):
        return
    try:
        fields = {f"guard_{name}": value for name, value in event._asdict().items()}
        logger.log(level, "%s", line(event), extra=fields)
    except Exception:
        # A handler or filter of the application is broken. The event is in the record,
        # and the guard that emitted it must go on.
        pass


def cancelled(event: Event) -> bool:
    """Whether this end of a request is a cancel, however it was reported."""
    return event.cause == "cancelled" or event.cause.startswith("RequestCancelled")


def line(event: Event) -> str:
    """The event as one line for a human."""
    subject, _, verb = event.kind.partition(".")
    match subject:
        case "request":
            text = _request(event, verb)
        case "engine":
            text = _engine(event, verb)
        case "model":
            text = f"{event.model} {verb}" + words.because(event.cause)
        case _:
            text = _job(event, subject, verb)
    return words.one_line(text)


def _engine(event: Event, verb: str) -> str:
    text = f"engine {verb}"
    if verb == "died":
        text += _after(event, "lived")
    made = words.parts(event.details, "spawn", "import")
    return text + (f" ({made})" if made else "") + words.because(event.cause)


def _request(event: Event, verb: str) -> str:
    name = words.who([(event.request_id or "?", event.model or "")])
    match verb:
        case "started" if words.number(event.details, "recovering") is not None:
            return f"{name} went on" + _after(event, "recovering")
        case "started":
            return f"{name} started" + _after(event, "queued")
        case "first_token":
            return f"{name} has its first token"
        case "resumed":
            return f"{name} resumed"
        case "interrupted":
            emitted = words.count(event.details, "emitted")
            tokens = f" after {emitted} tokens" if emitted else ""
            return f"{name} interrupted" + tokens + words.because(event.cause)
        case "finished":
            counts, took = words.tokens(event.details), words.took(event.details)
            return (
                f"{name} finished"
                + (f" ({event.cause})" if event.cause else "")
                + words.because(counts)
                + (f" in {words.seconds(took)}" if took is not None else "")
            )
        case "failed" if cancelled(event):
            return f"{name} cancelled" + words.because(words.without_class(event.cause))
        case _:
            return f"{name} {verb}" + _behind(event) + words.because(event.cause)


def _job(event: Event, subject: str, verb: str) -> str:
    name = f"{subject} of {event.model}" if event.model else f"{subject} {event.job_id or ''}"
    match verb:
        case "queued":
            asker = f", asked for by {event.request_id}"
            return f"{name} queued" + (asker if event.request_id else words.because(event.cause))
        case "deferred":
            return (
                f"{name} deferred" + (f" ({event.cause})" if event.cause else "") + _behind(event)
            )
        case "started":
            evict, paused = event.details.get("evict"), event.details.get("paused")
            return (
                f"{name} started"
                + _after(event, "waited")
                + (f", evicts {words.listing(evict)}" if evict else "")
                + (f", with {words.listing(paused)} paused" if paused else "")
            )
        case "finished":
            return f"{name} finished" + words.because(words.loaded(event.details))
        case _:
            return f"{name} {verb}" + words.because(event.cause)


def _behind(event: Event) -> str:
    return f" behind {words.who(event.waiting_for)}" if event.waiting_for else ""


def _after(event: Event, key: str) -> str:
    waited = words.number(event.details, key)
    return f" after {words.seconds(waited)}" if waited is not None and waited >= 0.005 else ""
