"""A replica in a clock of its own: the guard and the ledger themselves, and an engine that takes as
long as it is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count
from math import inf

from mlx_guarded_ray.book import Report
from mlx_guarded_ray.routing import ModelAt, ReplicaView

from mlx_guarded_llm.guard import Action, Guard, GuardLimits, Load, Settle, Start, Unload
from mlx_guarded_llm.memory.footprint import Footprint
from mlx_guarded_llm.memory.ledger import Ledger

INSTANT = 1e-9  # seconds


class SimulatedReplica:
    """What a replica does, and when.

    Its models take turns, as those of one engine do, so an answer takes longer while another
    model answers too. The requests of one model are decoded together.

    Args:
        name: tells it from others.
        budget: bytes.
        sizes: bytes of each model.
        load_rate: bytes a second that are loaded.
        limits: of its guard.
        answer: seconds that an answer is said to take, in reports.

    Attributes:
        next: when something happens there by itself.
        starts: when requests have started, by id.
        loads: of models.
        evictions: of models.
        requests: those it has.
        changed: something has happened since the last report.
    """

    def __init__(
        self,
        name: str,
        budget: int,
        sizes: Mapping[str, int],
        *,
        load_rate: float,
        limits: GuardLimits,
        answer: float,
    ) -> None:
        self.name = name
        self.next = inf
        self.starts: dict[str, float] = {}
        self.loads = self.evictions = 0
        self.requests: set[str] = set()
        self.changed = True
        self._ledger = Ledger(budget)
        self._guard = Guard(limits, ledger=self._ledger)
        self._limits = limits
        self._sizes, self._load_rate, self._answer = sizes, load_rate, answer
        self._now = 0.0
        self._works: dict[str, float] = {}  # seconds that answers take alone, by request
        self._left: dict[str, float] = {}  # of those that have started
        self._models: dict[str, str] = {}  # of those
        self._job, self._job_ends = "", inf
        self._reports = 0
        self._unloads = count()

    @property
    def idle(self) -> bool:
        """Nothing runs, waits or loads."""
        return self._guard.quiet

    def has(self, model: str) -> bool:
        """It has this model, or is to load it."""
        return self._guard.has(model)

    def models(self) -> int:
        """How many it has and keeps, or is to load."""
        return sum(self._guard.stage(model) != "unloading" for model in self._guard.models())

    def unused(self) -> list[str]:
        """The idle models that stay, the longest idle first."""
        leaving = {m.name for m in self._guard.models() if self._guard.stage(m) == "unloading"}
        return [model for model in self._guard.idle() if model not in leaving]

    def take(self, now: float, request: str, model: str, work: float) -> None:
        """A request comes, whose answer takes so many seconds alone."""
        self._pass(now)
        self.changed = True
        self.requests.add(request)
        self._works[request] = work
        self._ledger.know_model(
            model, Footprint(weight_bytes=self._sizes[model], kv_bytes_per_token=0)
        )
        self._guard.submit(now, request, model)
        self._guard.fetched(request)
        self._ledger.know_request(request, model, 1)
        self._do(self._guard.prepared(now, request))

    def unload(self, now: float, model: str) -> None:
        """Somebody asks for it."""
        self._pass(now)
        self._do(self._guard.ask_unload(now, f"unload {next(self._unloads)}", model))

    def run_until(self, now: float) -> list[str]:
        """Do what is due. Returns the requests that have ended."""
        ended: list[str] = []
        while self.next <= now:
            self._pass(self.next)
            self.changed = True
            if self._job and self._job_ends <= self._now:
                job, self._job, self._job_ends = self._job, "", inf
                self._do(self._guard.job_ended(self._now, job))
            elif not self._job and (over := self._over()):
                for request in over:
                    self._end(request)
                ended += over
            else:
                self._do(self._guard.tick(self._now))
        self._pass(now)
        return ended

    def report(self, now: float) -> Report:
        """What it says of itself, as `mlx_guarded_ray.replica.Replica` does."""
        self._reports += 1
        self.changed = False
        view = ReplicaView(
            self.name,
            self._ledger.budget_bytes,
            {
                model.name: ModelAt(
                    self._sizes[model.name],
                    model.resident,
                    len(model.active),
                    len(model.waiting),
                    idle=0.0 if model.active or model.waiting else now - model.last_used,
                )
                for model in self._guard.models()
            },
            answer=self._answer,
            load_rate=self._load_rate,
            max_active=self._limits.max_active,
        )
        return Report(self.name, self._reports, view, frozenset(self.requests))

    # ---- the engine -------------------------------------------------------------------

    @property
    def _turns(self) -> int:
        return len(set(self._models.values())) or 1

    def _over(self) -> list[str]:
        return [request for request, left in self._left.items() if left <= INSTANT]

    def _pass(self, now: float) -> None:
        if not self._job:
            turn = (now - self._now) / self._turns
            for request in self._left:
                self._left[request] -= turn
        self._now = now

    def _end(self, request: str) -> None:
        del self._left[request], self._models[request], self._works[request]
        self.requests.discard(request)
        _, actions = self._guard.ended(self._now, request)
        self._do(actions)

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Start():
                    self.starts.setdefault(action.request_id, self._now)
                    self._left[action.request_id] = self._works[action.request_id]
                    self._models[action.request_id] = action.model
                case Load():
                    self.loads += 1
                    self.evictions += len(action.evict)
                    took = self._sizes[action.model] / self._load_rate
                    self._job, self._job_ends = action.job_id, self._now + took
                case Unload():
                    self.evictions += 1
                    self._job, self._job_ends = action.job_id, self._now
                case Settle():
                    pass
                case _:
                    raise AssertionError(f"a simulation has no {action}")
        due = self._guard.next_deadline()
        ends = self._job_ends
        if not self._job:
            ends = self._now + max(min(self._left.values(), default=inf), 0.0) * self._turns
        self.next = min(inf if due is None else due, ends)
