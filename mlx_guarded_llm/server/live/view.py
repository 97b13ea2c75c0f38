"""What the live view shows: gathered once, for everybody who looks at that moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...backend import Health, ModelInfo
from ...errors import GuardedLLMError
from ...models.naming import bare_name
from ...record import Event, Mark, Timeline, phrases, timeline
from ...record.chart import DEATHS
from ...record.histories import Histories, JobHistory, RequestHistory
from ..context import Context
from ..health import ask, status
from ..security import Client

FRESH = 1.0  # seconds for which everybody is shown the same
RECENT = 3000  # events that are read; a record holds far more
REQUESTS = 40  # that are listed
WAITS = 20  # that are listed, with when they are expected to start
_LONGEST = 20  # characters that are shown of an id
ROWS = 100  # of the chart as a table


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One model.

    Attributes:
        progress: share of its load that is done, if it is being loaded.
        speed: tokens per second of all its running answers.
        known: it is of this machine and the settings name it, so it can be loaded and unloaded
            from here.
        error: what its last load failed of.
        same: another name of the same model, which is told of there.
        places: the replicas that have it, each with its state there.
    """

    name: str
    state: str
    pinned: bool = False
    running: int = 0
    waiting: int = 0
    memory_bytes: int = 0
    weight_bytes: int | None = None
    idle_seconds: float | None = None
    progress: float | None = None
    speed: float | None = None
    known: bool = True
    error: str = ""
    same: str = ""
    places: Sequence[str] = ()

    @property
    def loaded(self) -> bool:
        """Whether there is something to unload."""
        return self.state not in ("unloaded", "not fetched", "quarantined")


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Something that waits: a request, or a job of a model.

    Attributes:
        what: a request's id, or a job in words.
        request_id: of a request; None for a job.
        behind: what it waits for, in words.
        so_far: seconds.
        left: seconds until it is expected to start, if that is known.
    """

    what: str
    model: str
    request_id: str | None
    behind: str
    so_far: float
    left: float | None = None


@dataclass(frozen=True, kw_only=True)
class RequestRow:
    """One request that has started, or has ended.

    Attributes:
        state: "prefill", "answering", "paused", "recovering", or how it ended.
        ended: it is over.
        waited: seconds until it started.
        took: seconds from then on.
        tokens: of its answer, by now.
        speed: tokens per second.
    """

    request_id: str
    model: str
    state: str
    ended: bool
    cause: str = ""
    waited: float | None = None
    took: float | None = None
    tokens: int | None = None
    speed: float | None = None


@dataclass(frozen=True, kw_only=True)
class ChartRow:
    """A bar or a sign of the chart, in words."""

    model: str
    what: str
    request_id: str | None
    state: str
    ago: float
    lasts: float | None


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What requests and jobs do; for admins.

    Attributes:
        waits: who waits for whom, jobs first.
        requests: those under way, then those that ended last.
        chart: of the last minutes.
        speeds: tokens per second of the running answers, by model.
    """

    waits: Sequence[Wait]
    requests: Sequence[RequestRow]
    chart: Timeline
    speeds: Mapping[str, float]

    def chart_rows(self) -> Sequence[ChartRow]:
        """The chart as a table, latest first."""
        return list(_chart_rows(self.chart))[:ROWS]


@dataclass(frozen=True, kw_only=True)
class View:
    """What is shown to one client.

    Attributes:
        status: one word, as of `/health`.
        health: None if nothing decides any more.
        died: how often the engine has died.
        last_death: of what, and how many seconds ago.
        activity: None for clients that may not see what others do.
    """

    status: str
    health: Health | None
    models: Sequence[ModelRow]
    admin: bool
    died: int = 0
    last_death: tuple[str, float] | None = None
    activity: Activity | None = None

    @property
    def unlisted(self) -> int:
        """How many requests wait that are not listed."""
        listed = [wait for wait in self.activity.waits if wait.request_id] if self.activity else []
        return max(0, self.health.waiting - len(listed)) if self.health else 0

    @property
    def held(self) -> Sequence[tuple[str, int]]:
        """Who holds how much of the memory budget."""
        found = [(model.name, model.memory_bytes) for model in self.models if model.memory_bytes]
        rest = (self.health.memory_bytes if self.health else 0) - sum(size for _, size in found)
        return [*found, ("caches and others", rest)] if rest > 0 else found

    @property
    def speed(self) -> float:
        """Tokens per second of all running answers."""
        return sum(self.activity.speeds.values()) if self.activity else 0.0


class Viewer:
    """Gathers what is shown. Belongs to the event loop.

    However many look, the record is read once a second at most.

    Args:
        context: of the server.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._made: dict[int, tuple[float, Activity]] = {}
        self._lock = asyncio.Lock()

    async def look(self, client: Client, minutes: int) -> View:
        """What a client sees now, with a chart of the last minutes."""
        context = self._context
        context.tally.catch_up()
        health = await ask(context)
        found = await self._activity(health, minutes) if client.admin else None
        last = context.tally.last_death
        return View(
            status=status(context, health),
            health=health,
            models=await _models(context, client, found),
            admin=client.admin,
            died=context.tally.deaths,
            last_death=(last.cause, time.monotonic() - last.time) if last is not None else None,
            activity=found,
        )

    async def _activity(self, health: Health | None, minutes: int) -> Activity:
        async with self._lock:
            now = time.monotonic()
            self._made = {m: made for m, made in self._made.items() if now - made[0] < FRESH}
            if minutes not in self._made:
                tokens = health.tokens if health is not None else {}
                found = await asyncio.to_thread(self._read, tokens, now, minutes * 60.0)
                waits = [await _expect(self._context, wait) for wait in found.waits]
                self._made[minutes] = now, replace(found, waits=waits)
            return self._made[minutes][1]

    def _read(self, tokens: Mapping[str, int], now: float, seconds: float) -> Activity:
        """Read the record; on a thread, as it takes a while."""
        return activity(self._context.backend.record.latest(RECENT), tokens, now, seconds)


def activity(
    events: Iterable[Event], tokens: Mapping[str, int], now: float, seconds: float
) -> Activity:
    """What requests and jobs do, from the record.

    Args:
        events: of the record, the latest ones.
        tokens: that each running answer has by now, by request.
        now: seconds of `time.monotonic()`.
        seconds: that the chart goes back.
    """
    chart = timeline(events, since=now - seconds, until=now)
    histories = chart.histories
    rows = [
        _request_row(request, tokens.get(request.request_id), now)
        for request in sorted(histories.requests.values(), key=lambda r: r.seen, reverse=True)
        if request.started is not None or request.ended is not None
    ]
    under_way = [row for row in rows if not row.ended]
    ended = [row for row in rows if row.ended]
    speeds: dict[str, float] = {}
    for row in under_way:
        if row.speed is not None and row.state == "answering":
            speeds[row.model] = speeds.get(row.model, 0.0) + row.speed
    return Activity(
        waits=list(_waits(histories, now))[:WAITS],
        requests=[*under_way, *ended][:REQUESTS],
        chart=chart,
        speeds=speeds,
    )


def short(name: str) -> str:
    """A request's id as far as it takes to know it, with the number of its attempt."""
    name = phrases.one_line(name)
    if len(name) <= _LONGEST:
        return name
    attempt = name.rpartition(".")[2]
    return f"{name[: _LONGEST - 1]}…" + (f".{attempt}" if attempt.isdecimal() else "")


def _request_row(request: RequestHistory, tokens: int | None, now: float) -> RequestRow:
    ended = request.ended is not None
    if ended:
        tokens = phrases.count(request.details, "completion_tokens")
    until = now if request.ended is None else request.ended
    begun = until if request.started is None else request.started
    return RequestRow(
        request_id=request.request_id,
        model=request.model,
        state=request.outcome or _doing(request),
        ended=ended,
        cause=request.cause,
        waited=None if request.queued is None else begun - request.queued,
        took=None if request.started is None else until - request.started,
        tokens=tokens,
        speed=request.speed(tokens, now),
    )


def _doing(request: RequestHistory) -> str:
    if request.pausing:
        return "recovering" if request.pauses[-1].cut_off else "paused"
    return "answering" if request.first_token is not None else "prefill"


def _waits(histories: Histories, now: float) -> Iterator[Wait]:
    """Who waits for whom, the oldest first."""
    jobs = [job for job in histories.jobs if job.ended is None and job.started is None]
    for job in jobs:
        since = job.seen if job.queued is None else job.queued
        yield Wait(
            what=job.name,
            model=job.model or "",
            request_id=None,
            behind=_named(job.waiting_for, histories) or "its turn",
            so_far=now - since,
        )
    for request in histories.requests.values():
        if request.queued is None or request.started is not None or request.ended is not None:
            continue
        yield Wait(
            what=request.request_id,
            model=request.model,
            request_id=request.request_id,
            behind=_behind(request, histories),
            so_far=now - request.queued,
        )


def _behind(request: RequestHistory, histories: Histories) -> str:
    """What a request that is queued waits for, in words."""
    jobs = [job for job in histories.jobs_of(request) if job.ended is None]
    if jobs:
        return phrases.listing(_job(job) for job in jobs)
    return _named(request.waiting_for, histories) or "its turn"


def _job(job: JobHistory) -> str:
    return f"the {job.name}" + ("" if job.started is None else ", which runs")


def _named(pairs: Iterable[tuple[str, str]], histories: Histories) -> str:
    """Those of the requests and jobs that are still there, in words."""
    found = []
    for name, model in pairs:
        job, request = histories.job(name), histories.requests.get(name)
        if job is not None and job.ended is None:
            found.append(_job(job))
        elif request is not None and request.ended is None:
            found.append(phrases.who([(short(name), model)]))
    return phrases.listing(found)


async def _expect(context: Context, wait: Wait) -> Wait:
    if wait.request_id is None:
        return wait
    try:
        left = await context.backend.aexpected_wait(wait.request_id)
    except GuardedLLMError:  # nothing decides any more
        left = None
    return replace(wait, left=left)


async def _models(context: Context, client: Client, now: Activity | None) -> Sequence[ModelRow]:
    """The models that a client may use, and those beside them that somebody loaded."""
    states = await context.models.states()
    tellers: dict[str, str] = {}  # the names under which models are told of here
    rows = {}
    for model in context.models.visible(client):
        info, card = states.get(model.name), await model.card()
        told = context.loads.status(model.name, info)
        state = model.state(info, card)
        row = ModelRow(
            name=model.name,
            state="loading" if told["value"] == "loading" and state == "unloaded" else state,
            weight_bytes=card.weight_bytes if card else None,
            progress=context.loads.progress.get(info.name if info else model.name),
            known=model.remote is None,
            error=str(told.get("error", "")),
        )
        if info is not None:
            seen = client.may_use(bare_name(info.name))
            same = tellers.setdefault(info.name, info.name if seen else model.name)
            if same != model.name:  # its memory and its requests are counted once
                rows[model.name] = replace(row, pinned=info.pinned, same=same)
                continue
        rows[model.name] = _with(row, info, now)
    shown = {info.name: info for info in states.values()}
    for name, info in shown.items():
        if name not in rows and client.may_use(bare_name(name)):
            known = context.models.any_model
            rows[name] = _with(ModelRow(name=name, state=info.state, known=known), info, now)
    return [rows[name] for name in sorted(rows)]


def _with(row: ModelRow, info: ModelInfo | None, now: Activity | None) -> ModelRow:
    if info is None:
        return row
    return replace(
        row,
        pinned=info.pinned,
        running=info.active,
        waiting=info.waiting,
        memory_bytes=info.memory_bytes,
        idle_seconds=info.idle_seconds,
        speed=now.speeds.get(row.name) if now is not None else None,
        error=row.error or info.cause,
        places=info.places,
    )


def _happened(mark: Mark) -> str:
    what = mark.kind.rpartition(".")[2]
    return what if mark.cause in ("", what) else f"{what}: {mark.cause}"


def _chart_rows(chart: Timeline) -> Iterator[ChartRow]:
    found = [
        ChartRow(
            model=span.row,
            what=span.label,
            request_id=span.request_id if span.job_id is None else None,
            state=span.state + (f", {span.cause}" if span.cause else ""),
            ago=chart.end - span.start,
            lasts=span.seconds,
        )
        for span in chart.spans()
    ]
    found += [
        ChartRow(
            model=mark.row or "",
            what=mark.label,
            request_id=None,
            state=_happened(mark),
            ago=chart.end - mark.time,
            lasts=None,
        )
        for mark in chart.marks
        if mark.row is not None or mark.kind in (*DEATHS, "engine.started", "model.quarantined")
    ]
    yield from sorted(found, key=lambda row: row.ago)
