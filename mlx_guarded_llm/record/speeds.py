"""How fast models load, read prompts and answer, and how long their answers are.

All of it is measured: what has not happened yet is unknown, and is None.
"""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict, deque
from dataclasses import dataclass, field
from math import inf

from .events import Event

RECENT = 32  # requests, and
LOADS = 4  # loads, unloads or functions that a speed is taken from
ANSWERS = 128  # answers that a length is expected from


class Rate:
    """Seconds for each unit of some work, over the last times that it was done.

    Args:
        recent: how many times.
    """

    def __init__(self, recent: int) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=recent)
        self._each: float | None = None

    def add(self, amount: float, seconds: float) -> None:
        """So much was done in so many seconds."""
        if amount > 0:
            self._samples.append((amount, max(seconds, 0.0)))
            done = sum(amount for amount, _ in self._samples)
            self._each = sum(seconds for _, seconds in self._samples) / done

    def seconds(self, amount: float = 1.0) -> float | None:
        """How long so much takes."""
        return None if self._each is None else amount * self._each


class Lengths:
    """How many tokens answers have, and so how many more one will have.

    An answer that `max_tokens` cut off would have gone on. So the share of answers that go on
    at a length is counted among those that could have (the Kaplan-Meier estimate).
    """

    def __init__(self) -> None:
        self._ends: deque[tuple[int, bool]] = deque(maxlen=ANSWERS)
        self._mean = 0.0
        # Lengths at which answers ended, the tokens that an answer has by then on average,
        # and the share of answers that go on.
        self._steps: list[tuple[int, float, float]] | None = None

    def add(self, tokens: int, *, cut: bool) -> None:
        """An answer ended after so many tokens, or was cut off there."""
        self._ends.append((tokens, cut))
        self._steps = None

    def left(self, emitted: int, limit: int) -> float | None:
        """How many more tokens to expect of an answer that has some, and may have `limit`."""
        if not self._ends:
            return None
        limit = max(limit, emitted)
        already, go_on = self._until(emitted)
        if go_on == 0.0:  # no answer was as long as this one is by now
            return min(self._mean, limit - emitted)
        return (self._until(limit)[0] - already) / go_on

    def _until(self, length: int) -> tuple[float, float]:
        """How many of the first `length` tokens an answer has, and the share that goes on."""
        if self._steps is None:
            self._steps = self._count()
        at, tokens, go_on = self._steps[bisect(self._steps, (length, inf)) - 1]
        return tokens + (length - at) * go_on, go_on

    def _count(self) -> list[tuple[int, float, float]]:
        self._mean = sum(tokens for tokens, _ in self._ends) / len(self._ends)
        at, mean, go_on = 0, 0.0, 1.0
        steps = [(at, mean, go_on)]
        left = len(self._ends)
        for tokens, cut in sorted(self._ends):
            if not cut:
                mean += (tokens - at) * go_on
                at = tokens
                go_on *= (left - 1) / left
                steps.append((at, mean, go_on))
            left -= 1
        return steps


class Turns:
    """The time that a model gets where one thread steps all of them in turn.

    While two models answer, each gets half of it; while a job runs, none gets any. A speed in
    this time is the same whatever runs beside it.
    """

    def __init__(self) -> None:
        self._running: dict[str, str] = {}  # the model of each running request
        self._models = 1  # that take turns
        self._job: str | None = None  # that runs
        self._at: float | None = None  # the time of the last event
        self._turns = 0.0

    def now(self, time: float) -> float:
        """Seconds that a model which has answered all the time would have got by then."""
        if self._job or self._at is None:
            return self._turns
        return self._turns + max(time - self._at, 0.0) / self._models

    def take(self, event: Event) -> None:
        """Take the next event."""
        kind, _, verb = event.kind.partition(".")
        self._turns, self._at = self.now(event.time), event.time
        if kind == "request":
            if verb == "started":
                self._running[event.request_id or ""] = event.model or ""
            elif verb in ("finished", "failed", "interrupted"):
                self._running.pop(event.request_id or "", None)
        elif kind in ("load", "unload", "run"):
            if verb == "started":
                self._job = event.job_id
            elif event.job_id == self._job:  # one that waits may fail meanwhile
                self._job = None
        elif event.kind == "engine.died":
            self._running.clear()
            self._job = None
        self._models = len(set(self._running.values())) or 1


@dataclass(slots=True)
class _Running:
    """A request that the engine has, in the time of `Turns`.

    Attributes:
        started: when it started.
        first_token: when it had its first token, or None.
    """

    started: float
    first_token: float | None = None


@dataclass
class _Model:
    """What was measured of one model."""

    load: Rate = field(default_factory=lambda: Rate(LOADS))
    bytes: int = 0
    unload: Rate = field(default_factory=lambda: Rate(LOADS))
    prompt: Rate = field(default_factory=lambda: Rate(RECENT))
    answer: Rate = field(default_factory=lambda: Rate(RECENT))
    texts: Rate = field(default_factory=lambda: Rate(RECENT))
    lengths: Lengths = field(default_factory=Lengths)


class Speeds:
    """Learns from the events of one record, each given to it once, in order.

    What prompts, answers and texts take is in the time of `Turns`.
    """

    def __init__(self) -> None:
        self._models: defaultdict[str, _Model] = defaultdict(_Model)
        self._functions: defaultdict[str, Rate] = defaultdict(lambda: Rate(LOADS))
        self._running: dict[str, _Running] = {}
        self._turns = Turns()

    # ---- what is expected --------------------------------------------------------

    def load(self, model: str, size: int | None) -> float | None:
        """Seconds of a load: as this model's last ones, or as its bytes took for others.

        Args:
            size: bytes of its weights; None if unknown.
        """
        own = self._models[model].load.seconds()
        if own is not None or size is None:
            return own
        others = [(one.bytes, one.load.seconds()) for one in self._models.values() if one.bytes]
        known = [(read, seconds) for read, seconds in others if seconds is not None]
        read = sum(read for read, _ in known)
        return size * sum(seconds for _, seconds in known) / read if read else None

    def unload(self, model: str) -> float | None:
        """Seconds of an unload."""
        return self._models[model].unload.seconds()

    def function(self, label: str) -> float | None:
        """Seconds of a user's function."""
        return self._functions[label].seconds()

    def texts(self, model: str) -> float | None:
        """Seconds in which texts are embedded."""
        return self._models[model].texts.seconds()

    def prompt(self, model: str, tokens: int) -> float | None:
        """Seconds from a start to the first token, with the share that is usually cached."""
        return self._models[model].prompt.seconds(tokens)

    def token(self, model: str) -> float | None:
        """Seconds from one token of an answer to the next."""
        return self._models[model].answer.seconds()

    def tokens_left(self, model: str, emitted: int, limit: int) -> float | None:
        """How many more tokens an answer will have, `limit` at most in all."""
        return self._models[model].lengths.left(emitted, limit)

    def reading(self, request_id: str, now: float) -> float:
        """Seconds for which this running request has been running."""
        running = self._running.get(request_id)
        return self._turns.now(now) - running.started if running is not None else 0.0

    def writing(self, request_id: str, now: float) -> float | None:
        """Seconds since its first token; None if it has none."""
        running = self._running.get(request_id)
        if running is None or running.first_token is None:
            return None
        return self._turns.now(now) - running.first_token

    # ---- what has happened -------------------------------------------------------

    def learn(self, event: Event) -> None:
        """Take the next event."""
        self._turns.take(event)
        seconds = event.details.get("seconds", 0.0)
        match event.kind:
            case "load.finished" if event.model is not None:
                model = self._models[event.model]
                model.load.add(1, seconds)
                model.bytes = event.details.get("bytes") or model.bytes
            case "unload.finished" if event.model is not None:
                self._models[event.model].unload.add(1, seconds)
            case "run.finished" if event.model is not None:
                self._functions[event.model].add(1, seconds)
            case "engine.died":
                self._running.clear()
            case _ if event.request_id is not None and event.model is not None:
                self._request(event, event.request_id, self._models[event.model])

    def _request(self, event: Event, request_id: str, model: _Model) -> None:
        now = self._turns.now(event.time)
        running = self._running.get(request_id)
        match event.kind:
            case "request.started":
                self._running[request_id] = _Running(now)
            case "request.first_token" if running is not None:
                running.first_token = now
            case "request.failed" | "request.interrupted":
                self._running.pop(request_id, None)
            case "request.finished":
                self._running.pop(request_id, None)
                self._finished(event, running, now, model)

    def _finished(self, event: Event, running: _Running | None, now: float, model: _Model) -> None:
        answered = event.details.get("completion_tokens") or 0
        prompt = event.details.get("prompt_tokens") or 0
        if answered:
            model.lengths.add(answered, cut=event.cause == "length")
        if running is None:
            return
        if running.first_token is not None:
            model.prompt.add(prompt, running.first_token - running.started)
            model.answer.add(answered - 1, now - running.first_token)
        elif not answered and not event.cause:  # texts have no reason to end
            model.texts.add(1, now - running.started)
