"""A large deployment in a clock of its own, driven by the router's own code.

    python -m benchmarks.cluster --replicas 200 --models 2000

What is simulated is a replica: its memory, its loads, which wait for what runs there, its
continuous batch, and the eviction of the model that was idle longest. What is not is how it is
routed: `guarded` is `routing.rank` on a `book.Book`, with reports that come once a second, as in
Ray Serve. `power of two` is Ray Serve's default: of two replicas drawn by lot, the one with fewer
requests. `multiplexed` is the same among those that have the model; if there are none, among those
that have the fewest models, and a replica keeps so many models, however large they are.

The traffic has the shapes of published traces: few models have most of the requests (Zipf), each
model's requests come in bursts (a gamma process, as in the Azure LLM traces), the rate goes up and
down with the day, and lengths of answers have a long tail (log-normal).
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import cos, pi
from pathlib import Path
from typing import Literal, NamedTuple

from mlx_guarded_ray.book import Book, Report
from mlx_guarded_ray.routing import ModelAt, ReplicaView, Wanted, rank

GB = 10**9
Policy = Literal["guarded", "power of two", "multiplexed"]
POLICIES: Sequence[Policy] = ("guarded", "power of two", "multiplexed")


@dataclass(frozen=True, kw_only=True)
class World:
    """What is simulated.

    Attributes:
        replicas: how many.
        budget: bytes of each.
        load_rate: bytes a second that are loaded.
        models: how many there are.
        sizes: bytes of models, each as likely.
        hours: how long traffic comes.
        rate: requests a second, on average.
        zipf: a model's share of the requests falls with its rank to this power.
        burst: variance of the times between requests, as a multiple of a Poisson process's.
        answer: seconds of an answer alone, the median.
        tail: standard deviation of its logarithm.
        longest: seconds of an answer at most.
        max_active: requests of a model decoded together.
        period: seconds between two reports of a replica.
        kept: models that a replica keeps where they are multiplexed.
        seed: of all that is drawn.
    """

    replicas: int = 200
    budget: int = 64 * GB
    load_rate: float = 2.0 * GB
    models: int = 2000
    sizes: tuple[int, ...] = (2 * GB, 5 * GB, 9 * GB, 18 * GB, 40 * GB)
    hours: float = 2.0
    rate: float = 25.0
    zipf: float = 0.9
    burst: float = 8.0
    answer: float = 6.0
    tail: float = 0.9
    longest: float = 90.0
    max_active: int = 16
    period: float = 1.0
    kept: int = 3
    seed: int = 0


class Arrival(NamedTuple):
    """A request: when it comes, for which model, how many seconds its answer takes alone."""

    time: float
    model: int
    work: float


@dataclass
class Outcome:
    """What came of all requests.

    Attributes:
        waits: seconds of each, from its arrival to its start.
        loads: of models.
        evictions: of models.
        disturbing: loads where something was generated or waited while an idle replica could
            have taken them.
    """

    policy: str
    waits: list[float] = field(default_factory=list)
    loads: int = 0
    evictions: int = 0
    disturbing: int = 0
    hours: float = 1.0

    def quantile(self, share: float) -> float:
        """The wait that so many requests do not exceed."""
        waits = sorted(self.waits)
        return waits[min(int(share * len(waits)), len(waits) - 1)]


def traffic(world: World) -> list[Arrival]:
    """All requests, in order."""
    draw = random.Random(world.seed)
    weights = [1 / (n + 1) ** world.zipf for n in range(world.models)]
    total, seconds = sum(weights), world.hours * 3600
    arrivals = []
    for model, weight in enumerate(weights):
        mean = total / (weight * world.rate)  # seconds between two requests of this model
        at = draw.uniform(-1, 1) * mean
        while at < seconds:
            # More by day than by night: a day goes by while traffic comes.
            busy = 1 - 0.6 * cos(2 * pi * max(at, 0.0) / seconds)
            at += draw.gammavariate(1 / world.burst, mean * world.burst) / busy
            if 0 <= at < seconds:
                work = min(world.answer * draw.lognormvariate(0, world.tail), world.longest)
                arrivals.append(Arrival(at, model, work))
    return sorted(arrivals)


@dataclass
class _Model:
    size: int
    resident: bool = False
    active: int = 0
    last: float = 0.0
    waiting: list[tuple[Arrival, int]] = field(default_factory=list)


class _Replica:
    """Its memory and its guard, as far as routing can tell replicas apart."""

    def __init__(self, name: str, world: World, sizes: Sequence[int], outcome: Outcome) -> None:
        self.name = name
        self.models: dict[int, _Model] = {}
        self.order: list[int] = []  # models whose load waits, in the order in which they asked
        self.loading: int | None = None
        self.requests: set[int] = set()
        self.changed = True  # since the last report
        self._served = False  # what waited for a resident model, since the last load
        self._world, self._sizes, self._outcome = world, sizes, outcome
        self._reports = 0

    @property
    def idle(self) -> bool:
        """Nothing runs, waits or loads."""
        return not self.requests and self.loading is None

    def report(self, now: float) -> Report:
        """What it says of itself."""
        self._reports += 1
        self.changed = False
        view = ReplicaView(
            self.name,
            self._world.budget,
            {
                str(model): ModelAt(
                    it.size, it.resident, it.active, len(it.waiting), idle=now - it.last
                )
                for model, it in self.models.items()
            },
            answer=self._world.answer,
            load_rate=self._world.load_rate,
            max_active=self._world.max_active,
        )
        return Report(self.name, self._reports, view, frozenset(map(str, self.requests)))

    def take(self, arrival: Arrival, number: int) -> None:
        """A request comes."""
        self.changed = True
        self.requests.add(number)
        model = self.models.get(arrival.model)
        if model is None:
            model = self.models[arrival.model] = _Model(self._sizes[arrival.model])
            self.order.append(arrival.model)
        model.waiting.append((arrival, number))
        model.last = arrival.time

    def advance(self, now: float) -> Iterator[tuple[float, str, int, int]]:
        """What begins now: (when it ends, "answer" or "load", model, request)."""
        if self.loading is not None:
            return
        if self.order:
            # The guard: newcomers wait behind a load, and it waits for what runs.
            if any(it.active for it in self.models.values()):
                return
            model = self.order[0]
            if self._make_room(model):
                self.order.pop(0)
                self.loading, self._served = model, False
                self._outcome.loads += 1
                yield now + self.models[model].size / self._world.load_rate, "load", model, 0
                return
            self._served = True
        for name, it in self.models.items():
            while it.resident and it.waiting and it.active < self._world.max_active:
                arrival, number = it.waiting.pop(0)
                it.active += 1
                self._outcome.waits.append(now - arrival.time)
                yield now + arrival.work, "answer", name, number

    def ended(self, what: str, model: int, number: int, now: float) -> None:
        """Something that began is over."""
        self.changed = True
        it = self.models[model]
        it.last = now
        if what == "load":
            it.resident, self.loading = True, None
        else:
            it.active -= 1
            self.requests.remove(number)

    def forget(self, model: int) -> None:
        """Evict a model."""
        del self.models[model]
        self._outcome.evictions += 1

    def _make_room(self, model: int) -> bool:
        """Evict idle models, the longest idle first; and those that requests wait for, once."""
        over = sum(it.size for it in self.models.values() if it.resident)
        over += self.models[model].size - self._world.budget
        there = sorted((it.last, n) for n, it in self.models.items() if it.resident)
        idle = [n for _, n in there if not self.models[n].waiting]
        if not self._served and over > sum(self.models[n].size for n in idle):
            return False
        for n in (*idle, *(n for _, n in there if n not in idle)):
            if over <= 0:
                break
            it = self.models[n]
            over -= it.size
            if it.waiting:  # it is loaded again
                it.resident = False
                self.order.append(n)
                self._outcome.evictions += 1
            else:
                self.forget(n)
        return True


def simulate(world: World, policy: Policy, arrivals: Sequence[Arrival]) -> Outcome:
    """Send all requests by one policy, and count what comes of it."""
    draw = random.Random(world.seed + 1)
    sizes = [draw.choice(world.sizes) for _ in range(world.models)]
    outcome = Outcome(policy, hours=world.hours)
    replicas = [_Replica(f"r{n}", world, sizes, outcome) for n in range(world.replicas)]
    by_name = {replica.name: replica for replica in replicas}
    book, numbers = Book(), count(1)
    # Time, order of equal times, replica, what, model, request.
    due: list[tuple[float, int, _Replica, str, int, int]] = []
    for replica in replicas:
        at = draw.uniform(0, world.period)
        heapq.heappush(due, (at, next(numbers), replica, "report", 0, 0))

    def choose(arrival: Arrival, number: int) -> _Replica:
        if policy == "guarded":
            name = str(arrival.model)
            wanted = Wanted(name, sizes[arrival.model], request_id=str(number))
            chosen = by_name[rank(wanted, [book.view(r.name) for r in replicas])[0].name]
            book.sent(str(number), wanted, chosen.name)
            return chosen
        among = replicas
        if policy == "multiplexed":
            have = [r for r in replicas if arrival.model in r.models]
            fewest = min(len(r.models) for r in replicas)
            among = have or [r for r in replicas if len(r.models) == fewest]
        two = draw.sample(among, min(2, len(among)))
        return min(two, key=lambda replica: len(replica.requests))

    def go(replica: _Replica, now: float) -> None:
        for end, what, model, number in replica.advance(now):
            heapq.heappush(due, (end, next(numbers), replica, what, model, number))

    coming = iter(arrivals)
    arrival = next(coming, None)
    pending = len(arrivals)
    while pending:
        if arrival is not None and arrival.time <= due[0][0]:
            number = next(numbers)
            replica = choose(arrival, number)
            if arrival.model not in replica.models and not replica.idle:
                outcome.disturbing += any(other.idle for other in replicas)
            replica.take(arrival, number)
            if policy == "multiplexed":
                _keep(replica, world.kept)
            go(replica, arrival.time)
            arrival = next(coming, None)
            continue
        now, _, replica, what, model, number = heapq.heappop(due)
        if what == "report":
            heapq.heappush(due, (now + world.period, next(numbers), replica, what, 0, 0))
        else:
            replica.ended(what, model, number, now)
            go(replica, now)
            if what == "answer":
                pending -= 1
                book.ended(str(number), replica.name)
        if what != "load" and replica.changed and policy == "guarded":
            book.report(replica.report(now))  # each second, and at the end of each reply
    return outcome


def _keep(replica: _Replica, kept: int) -> None:
    """`serve.multiplexed` counts models, and unloads the one that was asked for least lately."""
    models = replica.models
    idle = sorted(
        (it.last, n) for n, it in models.items() if it.resident and not it.active and not it.waiting
    )
    for _, n in idle[: max(0, len(models) - kept)]:
        replica.forget(n)


def table(world: World, outcomes: Sequence[Outcome]) -> str:
    """What came of each policy, in Markdown."""
    head = (
        "router",
        "mean wait (s)",
        "99 % wait less than (s)",
        "worst wait (s)",
        "loads an hour",
        "evictions an hour",
        "loads that disturbed needlessly",
    )
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for one in outcomes:
        cells = (
            one.policy,
            f"{sum(one.waits) / len(one.waits):.1f}",
            f"{one.quantile(0.99):.0f}",
            f"{max(one.waits):.0f}",
            f"{one.loads / world.hours:,.0f}",
            f"{one.evictions / world.hours:,.0f}",
            f"{one.disturbing:,}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(outcomes: Sequence[Outcome], file: Path) -> None:
    """Draw how many requests wait longer than a time. It needs matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "mlx-guarded-ray"
    figure, axes = plt.subplots(figsize=(7, 4))
    for one in outcomes:
        waits = sorted(one.waits)
        step = max(1, len(waits) // 2000)
        shares = [1 - n / len(waits) for n in range(0, len(waits), step)]
        axes.plot([max(wait, 0.01) for wait in waits[::step]], shares, label=one.policy)
    axes.set(
        xscale="log", yscale="log", xlabel="wait (s)", ylabel="share of requests that wait longer"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    default = World()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster")
    for name in ("replicas", "models", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    for name in ("hours", "rate"):
        parser.add_argument(f"--{name}", type=float, default=getattr(default, name))
    parser.add_argument("--plot", type=Path, help="draw it into this SVG file")
    given = parser.parse_args(arguments)
    world = replace(
        default,
        replicas=given.replicas,
        models=given.models,
        hours=given.hours,
        rate=given.rate,
        seed=given.seed,
    )
    arrivals = traffic(world)
    print(f"{len(arrivals):,} requests for {world.models:,} models at {world.replicas} replicas\n")
    outcomes = [simulate(world, policy, arrivals) for policy in POLICIES]
    print(table(world, outcomes))
    if given.plot:
        plot(outcomes, given.plot)


if __name__ == "__main__":
    main()
