"""A large deployment in a clock of its own, driven by the router's own code.

    python -m benchmarks.cluster --replicas 200 --models 2000

What is simulated is the engine of each replica: its loads and answers take a given time. What is
not is the guard of each, and how requests are routed: `guarded` is `routing.rank` on a `book.Book`,
with reports that come once a second and after each answer, as in Ray Serve. `power of two` is Ray
Serve's default: of two replicas drawn by lot, the one with fewer requests. `multiplexed` is the
same among those that have the model; if there are none, among those that have the fewest models,
and a replica keeps so many models, however large they are.

The traffic has the shapes of published traces: few models have most of the requests (Zipf), each
model's requests come in bursts (a gamma process, as in the Azure LLM traces), the rate goes up and
down with the day, and lengths of answers have a long tail (log-normal).
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import cos, inf, pi
from pathlib import Path
from typing import Literal, NamedTuple

from mlx_guarded_ray.book import Book
from mlx_guarded_ray.routing import Wanted, rank

from mlx_guarded_llm.guard import GuardLimits

from .simulated_replica import SimulatedReplica

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


def simulate(world: World, policy: Policy, arrivals: Sequence[Arrival]) -> Outcome:
    """Send all requests by one policy, and count what comes of it."""
    draw = random.Random(world.seed + 1)
    sizes = {str(model): draw.choice(world.sizes) for model in range(world.models)}
    replicas = [
        SimulatedReplica(
            f"r{number}",
            world.budget,
            sizes,
            load_rate=world.load_rate,
            limits=GuardLimits(max_active=world.max_active, max_queue=len(arrivals) + 1),
            answer=world.answer,
        )
        for number in range(world.replicas)
    ]
    route = _Guarded(replicas, sizes) if policy == "guarded" else _ByLot(replicas, policy, world)
    outcome = Outcome(policy)
    # What is to happen: time, order of equal times, what, where, and the replica's `next` by then.
    due: list[tuple[float, int, str, SimulatedReplica, float]] = []
    order = count()

    def push(time: float, what: str, replica: SimulatedReplica) -> None:
        if time < inf:
            heapq.heappush(due, (time, next(order), what, replica, replica.next))

    for replica in replicas:
        push(draw.uniform(0, world.period), "report", replica)
    coming = iter(enumerate(arrivals))
    number, arrival = next(coming, (0, None))
    pending = len(arrivals)
    while pending:
        if arrival is not None and arrival.time <= due[0][0]:
            request, model = str(number), str(arrival.model)
            replica = route.choose(request, model)
            if not replica.has(model) and not replica.idle:
                outcome.disturbing += any(other.idle for other in replicas)
            replica.take(arrival.time, request, model, arrival.work)
            route.sent(replica, arrival.time)
            push(replica.next, "work", replica)
            number, arrival = next(coming, (0, None))
            continue
        now, _, what, replica, then = heapq.heappop(due)
        if what == "report":
            push(now + world.period, "report", replica)
            if replica.changed:
                route.report(replica, now)
        elif then == replica.next:  # otherwise something has come in between
            ended = replica.run_until(now)
            pending -= len(ended)
            if ended:
                route.ended(replica, ended, now)
            push(replica.next, "work", replica)
    for replica in replicas:
        outcome.waits += [at - arrivals[int(id)].time for id, at in replica.starts.items()]
        outcome.loads += replica.loads
        outcome.evictions += replica.evictions
    return outcome


class _Guarded:
    """Our router, with what it would know of the replicas."""

    def __init__(self, replicas: Sequence[SimulatedReplica], sizes: Mapping[str, int]) -> None:
        self._by_name = {replica.name: replica for replica in replicas}
        self._sizes = sizes
        self._book = Book()

    def choose(self, request: str, model: str) -> SimulatedReplica:
        wanted = Wanted(model, self._sizes[model], request_id=request)
        chosen = rank(wanted, map(self._book.view, self._by_name))[0]
        self._book.sent(request, wanted, chosen.name)
        return self._by_name[chosen.name]

    def sent(self, replica: SimulatedReplica, now: float) -> None:
        """A replica has the request."""

    def ended(self, replica: SimulatedReplica, requests: Sequence[str], now: float) -> None:
        for request in requests:
            self._book.ended(request, replica.name)
        self.report(replica, now)

    def report(self, replica: SimulatedReplica, now: float) -> None:
        self._book.report(replica.report(now))


class _ByLot:
    """Ray Serve's routers: of two replicas drawn by lot, the one with fewer requests."""

    def __init__(self, replicas: Sequence[SimulatedReplica], policy: Policy, world: World) -> None:
        self._replicas, self._policy, self._kept = replicas, policy, world.kept
        self._draw = random.Random(world.seed + 2)

    def choose(self, request: str, model: str) -> SimulatedReplica:
        among = self._replicas
        if self._policy == "multiplexed":
            have = [replica for replica in among if replica.has(model)]
            fewest = min(replica.models() for replica in among)
            among = have or [replica for replica in among if replica.models() == fewest]
        two = self._draw.sample(among, min(2, len(among)))
        return min(two, key=lambda replica: len(replica.requests))

    def sent(self, replica: SimulatedReplica, now: float) -> None:
        """`serve.multiplexed` counts models; the one that was asked for least lately goes."""
        if self._policy == "multiplexed":
            for model in replica.unused()[: max(0, replica.models() - self._kept)]:
                replica.unload(now, model)

    def ended(self, replica: SimulatedReplica, requests: Sequence[str], now: float) -> None:
        """Nothing is learned of it."""

    def report(self, replica: SimulatedReplica, now: float) -> None:
        """Nor is it asked for."""


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
