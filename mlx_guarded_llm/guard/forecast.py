"""When waiting requests will start: the guard is run ahead, with an engine of measured speed.

A copy of the guard decides as the guard itself will, so nothing here knows its rules. What its
actions take is expected from what was measured. After something that was never measured nothing
is known, and nothing is said. Nobody else arrives, cancels or runs into a deadline.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

from ..record.speeds import Speeds
from .actions import Action, Exclusive, Fail, Load, Settle, Start, Stop, Unload
from .guard import Guard
from .limits import Priority
from .state import JobState, RequestState, Status

MOST = 5_000  # steps; who starts later is not known


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a request asks of the engine.

    Attributes:
        prompt_tokens: of its prompt.
        max_tokens: that its answer may have; 0 if it has none, but texts to embed.
        emitted: tokens that its answer has by now.
    """

    prompt_tokens: int
    max_tokens: int
    emitted: int = 0


@dataclass(frozen=True, kw_only=True)
class Newcomer:
    """A request that might be made now."""

    id: str
    model: str
    priority: Priority = "interactive"


@dataclass(kw_only=True)
class Forecast:
    """What is expected, in seconds from when it was made.

    Attributes:
        starts: of the requests whose start is known, by id.
        room: until the queue takes another request; None if that is unknown.
    """

    starts: dict[str, float] = field(default_factory=dict)
    room: float | None = None


def forecast(
    guard: Guard,
    now: float,
    speeds: Speeds,
    *,
    work: Mapping[str, Work],
    sizes: Mapping[str, int],
    loaded: float = 0.0,
    newcomers: Iterable[Newcomer] = (),
) -> Forecast:
    """When everybody who waits will start.

    Args:
        guard: stays as it is.
        speeds: what was measured.
        work: of each request whose prompt is known, by id.
        sizes: bytes of models, as far as they are known.
        loaded: the share of the running load that is done.
        newcomers: requests that nobody has made, behind all that wait. Their models must be
            known to the guard's ledger.
    """
    ahead = _Ahead(guard, now, speeds, work, sizes)
    ahead.begin(loaded)
    ahead.join(newcomers)
    ahead.run()
    return ahead.found


class _Ahead:
    """An engine that takes as long as is expected, and a clock."""

    def __init__(
        self,
        guard: Guard,
        now: float,
        speeds: Speeds,
        work: Mapping[str, Work],
        sizes: Mapping[str, int],
    ) -> None:
        full = guard.full()
        self._guard, self._state = guard.fork()
        self._began = self._now = now
        self._speeds = speeds
        self._work = work
        self._sizes = sizes
        self._left: dict[str, float] = {}  # seconds that each generation has yet to run alone
        self._job = ""
        self._job_ends = inf
        self.found = Forecast(room=None if full else 0.0)

    def begin(self, loaded: float) -> None:
        """Take over what runs."""
        state = self._state
        for request_id in state.active:
            self._left[request_id] = self._rest(state.requests[request_id])
        if state.running is not None:
            self._job = state.running.id
            self._job_ends = self._now + self._job_rest(state.running, loaded)
        self._do(self._guard.tick(self._now))

    def join(self, newcomers: Iterable[Newcomer]) -> None:
        """Those whose prompts are being prepared come first, then those who might come."""
        for request_id in list(self._state.early):
            self._do(self._guard.prepared(self._now, request_id))
        for new in newcomers:
            self._guard.submit(self._now, new.id, new.model, priority=new.priority)
            self._guard.fetched(new.id)
            self._do(self._guard.prepared(self._now, new.id))

    def run(self) -> None:
        """Go on until everybody has started, or nothing is known any more."""
        for _ in range(MOST):
            if not self._state.queued_requests():
                break
            due = self._guard.next_deadline()
            ends = self._job_ends
            if not self._job:
                ends = self._now + min(self._left.values(), default=inf) * self._models
            if due is not None and due < ends:
                # It may pause a generation that could have ended long before.
                if inf in self._left.values():
                    break
                self._pass(due)
                self._do(self._guard.tick(self._now))
            elif ends < inf:
                self._pass(ends)
                self._end()
            else:
                break

    @property
    def _models(self) -> int:
        """How many models one thread steps in turn."""
        return sum(1 for model in self._state.residents.values() if model.active) or 1

    def _pass(self, time: float) -> None:
        time = max(time, self._now)
        if not self._job:
            turn = (time - self._now) / self._models
            for request_id in self._left:
                self._left[request_id] -= turn
        self._now = time

    def _end(self) -> None:
        if self._job:
            job, self._job = self._job, ""
            self._do(self._guard.job_ended(self._now, job))
            return
        request_id = min(self._left, key=self._left.__getitem__)
        del self._left[request_id]
        _, actions = self._guard.ended(self._now, request_id)
        self._do(actions)

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Start():
                    self._leaves_queue()
                    self.found.starts.setdefault(action.request_id, self._now - self._began)
                    request = self._state.requests[action.request_id]
                    self._left[action.request_id] = self._whole(request)
                case Stop():
                    self._left[action.request_id] = 0.0
                case Fail():
                    self._leaves_queue()
                case Settle():
                    pass
                case _:
                    self._job = action.job_id
                    self._job_ends = self._now + self._job_whole(action)

    def _leaves_queue(self) -> None:
        if self.found.room is None:
            self.found.room = self._now - self._began

    # ---- what things take; infinite where that is unknown ------------------------

    def _whole(self, request: RequestState) -> float:
        """A request that starts now."""
        work = self._work.get(request.id)
        if work is None:
            return inf
        if not work.max_tokens:
            return _known(self._speeds.texts(request.model))
        prompt = self._speeds.prompt(request.model, work.prompt_tokens + work.emitted)
        return _known(prompt) + self._answer(request.model, work, 0.0)

    def _rest(self, request: RequestState) -> float:
        """A request that runs."""
        if request.status is Status.STOPPING:
            return 0.0
        writing = self._speeds.writing(request.id, self._now)
        if writing is None:
            return max(self._whole(request) - self._speeds.reading(request.id, self._now), 0.0)
        work = self._work.get(request.id)
        return inf if work is None else self._answer(request.model, work, writing)

    def _answer(self, model: str, work: Work, writing: float) -> float:
        """The rest of an answer, of which so many seconds are over."""
        each = self._speeds.token(model)
        if each is None and work.emitted:
            each = writing / work.emitted
        return _known(self._speeds.tokens_left(model, work.emitted, work.max_tokens)) * _known(each)

    def _job_rest(self, job: JobState, loaded: float) -> float:
        assert job.started_at is not None
        over = self._now - job.started_at
        if job.kind == "unload":
            whole = self._speeds.unload(job.model)
        elif job.kind == "run":
            whole = self._speeds.function(job.model)
        else:
            whole = self._speeds.load(job.model, self._sizes.get(job.model))
            if loaded > 0:
                return (1 - loaded) * (over / loaded if whole is None else whole)
        return max(_known(whole) - over, 0.0)

    def _job_whole(self, action: Exclusive) -> float:
        if isinstance(action, Load):
            return _known(self._speeds.load(action.model, self._sizes.get(action.model)))
        if isinstance(action, Unload):
            return _known(self._speeds.unload(action.model))
        running = self._state.running
        return _known(self._speeds.function(running.model if running else ""))


def _known(value: float | None) -> float:
    return inf if value is None else value
