"""Random use of the public API for a long time, with everything checked all along.

    python -m tests.soak.soak --minutes 30 [--isolation process|thread] [--seed N] [--models N]

Several threads and an asyncio loop share one backend that lives as long as the run; every
period a second backend with an odd configuration (a tight budget, a short queue, injected
faults) is opened, used and closed beside it. All of it runs under the witness, which aborts
the process of an engine at the first overlap. What must hold:

- Every error is one that the operation or the backend's configuration may cause.
- A scripted model's answer is its script, whatever else goes on.
- Every request ends, and after each period no queue holds anything.
- No engine dies; a worker ends when its backend is closed.
- After each period, with all models unloaded, MLX holds what it held at the start
  (`MEMORY_SLACK`); threads and file descriptors do not grow (`COUNT_SLACK`), and resident
  memory of the last third of the run is not above that of the first by more than `RSS_SLACK`.
  All of it counts this process, and the worker that is used as long as the run.

Exit code 0, or 1 with the seed when something was off, or -6 from the witness of a thread.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import faulthandler
import gc
import os
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, get_args

import psutil

from mlx_guarded_llm import Backend, Catalog
from mlx_guarded_llm.backend.jobs import Job
from mlx_guarded_llm.backend.requests import Request
from mlx_guarded_llm.backend.supervisor import Isolation
from mlx_guarded_llm.engine import observer
from mlx_guarded_llm.errors import (
    GenerationFailed,
    LoadDeferredTimeout,
    MemoryRefused,
    QueueFull,
)
from tests.soak.inspect_engine import active_memory, in_engine, kept, unfinished, witnessed
from tests.soak.operations import (
    ASYNC_OPERATIONS,
    OPERATIONS,
    Operation,
    Profile,
    Use,
    make_models,
)

MEMORY_SLACK = 64 * 1024  # bytes of MLX memory beyond the start's, all models unloaded
COUNT_SLACK = 2  # threads and file descriptors: a fetch may be ending just now
RSS_SLACK = 64 * 1024**2
END_LIMIT = 120.0  # seconds for the last operation of a worker, and for a queue to drain
WORKERS = 3
TASKS = 3


@dataclasses.dataclass(frozen=True)
class Sample:
    """What this process and the worker hold after a period, every model unloaded."""

    threads: int
    fds: int
    rss: int
    active: int

    @classmethod
    def take(cls, backend: Backend) -> Sample:
        active = in_engine(backend, active_memory, label="sample")
        gc.collect()
        worker = [psutil.Process(backend.worker_pid)] if backend.worker_pid else []
        processes = [psutil.Process(), *worker]
        return cls(
            sum(process.num_threads() for process in processes),
            sum(process.num_fds() for process in processes),
            sum(process.memory_info().rss for process in processes),
            active,
        )

    def __str__(self) -> str:
        return (
            f"{self.threads} threads, {self.fds} fds, {self.rss / 1e6:.0f} MB resident, "
            f"{self.active} bytes in MLX"
        )


class Soak:
    """One run. `faults` holds what was off; the first one ends it."""

    def __init__(self, *, seed: int, models: int, folder: Path, isolation: Isolation) -> None:
        self.seed = seed
        self.isolation = isolation
        self.seen: Counter[str] = Counter()  # by the witness
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self.samples: list[Sample] = []
        self._count = threading.Lock()
        self.models, self.broken, aliases = make_models(folder / "models", models)
        self._catalog = Catalog(aliases_file=aliases, cache_dir=folder / "cache")

    def go(self, seconds: float) -> None:
        """Use two backends at once until the time is over, and in two periods at least."""
        period = min(60.0, max(5.0, seconds / 6))
        end = time.monotonic() + seconds
        long = Profile("long", {"load_wait": 0.05, "fairness_window": 0.05})
        with self._open(long) as backend:
            self.samples.append(Sample.take(backend))
            print(f"start: {self.samples[0]}", flush=True)
            profiles = self._profiles(backend)
            dice = Random(self.seed)
            while not self.faults and (time.monotonic() < end or len(self.samples) < 3):
                profile = dice.choice(profiles)
                with self._open(profile) as brief:
                    workers = [used.run(os.getpid) for used in (backend, brief)]
                    until = time.monotonic() + period  # with both engines at work
                    self._use([(backend, long), (brief, profile)], until, dice.getrandbits(32))
                    for used, pid in zip((backend, brief), workers, strict=True):
                        self._check_drained(used)
                        if used.run(os.getpid) != pid:
                            deaths = [e.cause for e in used.events() if e.kind == "engine.died"]
                            self.faults.append(f"an engine died beside {profile.name}: {deaths}")
                    self._close(brief, profile)
                self._check_sample(backend, profile)
                del brief, used
            self._close(backend, long)
        if self.isolation == "thread":
            left = active_memory(None)
            if left > self.samples[0].active + MEMORY_SLACK:
                self.faults.append(f"after close {left} bytes are left in MLX")
        self._check_growth()

    def _close(self, backend: Backend, profile: Profile) -> None:
        """Close one, and see that nothing is left of it."""
        seen = in_engine(backend, witnessed, label="witness")
        self.seen = Counter(seen) + (self.seen if self.isolation == "process" else Counter())
        pid = backend.worker_pid
        if not backend.close() or backend._dispatcher.alive:
            self.faults.append(f"the backend {profile.name} did not close")
        if pid is not None and psutil.pid_exists(pid):
            self.faults.append(f"worker {pid} of {profile.name} outlived its backend")

    def _open(self, profile: Profile) -> Backend:
        options: dict[str, Any] = {"timeout": 90.0, "record_size": 2000, **profile.options}
        return Backend(isolation=self.isolation, catalog=self._catalog, offline=True, **options)

    def _profiles(self, backend: Backend) -> list[Profile]:
        for model in self.models[:2]:
            backend.load(model.name)
        used, _ = backend.memory()
        kept = backend._dispatcher.supervisor.ready
        assert kept is not None
        tight = int((used - kept.limits.prefix_cache_bytes) * 1.1)
        quick: dict[str, Any] = {"load_wait": 0.02, "fairness_window": 0.02}
        return [
            Profile(
                "tight", {**quick, "memory_budget": tight, "prefix_cache": 0}, (MemoryRefused,)
            ),
            Profile("short queue", {"max_queue": 1, "max_active": 1, **quick}, (QueueFull,)),
            Profile("raising", {**quick, "on_load_deadline": "raise"}, (LoadDeferredTimeout,)),
            Profile("sabotaged", quick, (GenerationFailed,), sabotage=True),
            Profile("patient", {"load_wait": 5.0, "fairness_window": 1.0, "prefix_cache": "64KB"}),
            Profile("forgetful", {**quick, "keep_alive": 0.05, "prefill_step_size": 16}),
        ]

    def _use(self, backends: list[tuple[Backend, Profile]], until: float, seed: int) -> None:
        """Let the workers loose, and see that all of them come back."""

        def use(number: int, backend: Backend, profile: Profile) -> Use:
            return Use(backend, profile, self.models, self.broken, Random(seed + number))

        workers = [
            threading.Thread(
                target=self._work,
                args=(use(n, *backends[min(n // WORKERS, 1)]), until),
                name=f"soak-{n}",
                daemon=True,
            )
            for n in range(WORKERS + 2)
        ]
        tasks = [use(100 + n, *backends[n % 2]) for n in range(TASKS)]
        workers.append(
            threading.Thread(
                target=lambda: asyncio.run(self._work_async(tasks, until)),
                name="soak-asyncio",
                daemon=True,
            )
        )
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()) + END_LIMIT)
            if worker.is_alive():
                faulthandler.dump_traceback(all_threads=True)
                raise SystemExit(f"soak: {worker.name} never came back; seed {self.seed}")

    def _work(self, use: Use, until: float) -> None:
        weights = [weight for weight, _, _ in OPERATIONS]
        while time.monotonic() < until and not self.faults:
            _, allows, function = use.dice.choices(OPERATIONS, weights)[0]
            with self._judged(function, allows + use.profile.allows) as outcome:
                outcome.append(function(use))

    async def _work_async(self, uses: list[Use], until: float) -> None:
        async def work(use: Use) -> None:
            weights = [weight for weight, _, _ in ASYNC_OPERATIONS]
            while time.monotonic() < until and not self.faults:
                _, allows, function = use.dice.choices(ASYNC_OPERATIONS, weights)[0]
                with self._judged(function, allows + use.profile.allows) as outcome:
                    outcome.append(await function(use))

        await asyncio.gather(*(work(use) for use in uses))

    @contextlib.contextmanager
    def _judged(
        self, function: Operation, allows: tuple[type[BaseException], ...]
    ) -> Iterator[list[str]]:
        """Count how an operation ended; what it may not end with is a fault."""
        outcome: list[str] = []
        try:
            yield outcome
        except allows as error:
            outcome.append(type(error).__name__)
        except BaseException as error:
            outcome.append(f"FAULT {type(error).__name__}")
            self.faults.append(f"{function.__name__}: {''.join(traceback.format_exception(error))}")
        with self._count:
            self.outcomes[function.__name__, outcome[0]] += 1

    def _check_drained(self, backend: Backend) -> None:
        """Left streams end on their own; then nothing may be kept of any request."""
        end = time.monotonic() + END_LIMIT
        while left := _left(backend):
            if time.monotonic() > end:
                self.faults.append(f"still under way after {END_LIMIT:.0f} s: {left}")
                return
            time.sleep(0.05)

    def _check_sample(self, backend: Backend, profile: Profile) -> None:
        for info in backend.models():
            backend.unload(info.name)
        sample = Sample.take(backend)
        self.samples.append(sample)
        print(
            f"{sum(self.outcomes.values())} operations, last {profile.name}: {sample}", flush=True
        )
        first = self.samples[0]
        if sample.active > first.active + MEMORY_SLACK:
            self.faults.append(f"MLX memory leaks: {first} -> {sample}")
        left = Counter(in_engine(backend, kept, label="kept"))
        gc.collect()
        left.update(type(o).__name__ for o in gc.get_objects() if isinstance(o, (Request, Job)))
        if left:
            self.faults.append(f"of ended requests there is left: {dict(left)}")

    def _check_growth(self) -> None:
        samples = self.samples[1:]  # the first was before any model was loaded
        third = max(1, len(samples) // 3)
        early, late = samples[:third], samples[-third:]
        for name, slack in (("threads", COUNT_SLACK), ("fds", COUNT_SLACK), ("rss", RSS_SLACK)):
            before = statistics.median(getattr(sample, name) for sample in early)
            after = statistics.median(getattr(sample, name) for sample in late)
            if after > before + slack:
                self.faults.append(f"{name} grew from {before:.0f} to {after:.0f}")


def _left(backend: Backend) -> str:
    """What a backend still knows of requests, in words; "" if nothing."""
    dispatcher = backend._dispatcher
    held: dict[str, Any] = {
        "models": [m.name for m in backend.models() if m.active or m.waiting],
        "requests": dispatcher.pending.requests,
        "ids in the engine": dispatcher.pending.by_engine_id,
        "jobs": dispatcher.pending.jobs,
        "fetches": dispatcher.registry.fetching,
    }
    if not any(held.values()):
        held = in_engine(backend, unfinished, label="unfinished")
    return ", ".join(f"{name}: {list(things)}" for name, things in held.items() if things)


def main() -> int:
    """Run, and say how it went."""
    parser = argparse.ArgumentParser(description="Random use of the library under the witness.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=None, help="of the dice; drawn if not given")
    parser.add_argument("--models", type=int, default=8, help="how many models, 3 at least")
    parser.add_argument("--isolation", choices=get_args(Isolation), default="process")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    print(f"soak: {options.minutes:g} minutes, {options.isolation}, seed {seed}", flush=True)
    os.environ[observer.WITNESS_VARIABLE] = "1"
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as folder:
        models, isolation = max(3, options.models), options.isolation
        soak = Soak(seed=seed, models=models, folder=Path(folder), isolation=isolation)
        soak.go(options.minutes * 60)
    for (name, outcome), count in sorted(soak.outcomes.items()):
        print(f"  {name:<24} {outcome:<24} {count}")
    print("  the witness saw", ", ".join(f"{count} {kind}s" for kind, count in soak.seen.items()))
    for fault in soak.faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    total = sum(soak.outcomes.values())
    word = f"FAILED, {len(soak.faults)} faults" if soak.faults else "ok"
    print(f"soak: {word}: {total} operations, {len(soak.samples) - 1} periods, seed {seed}")
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
