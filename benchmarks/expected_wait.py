"""How wrong the expected wait is: a mixed load, what was told when each request queued, what came.

    python -m benchmarks.expected_wait [--shapes tiny tiny tiny] [--seconds 180] [--rate 1.2]

Models of these shapes share one backend whose memory holds all of them but one, so they are
loaded again and again. Requests come at random, for a model at random; a third are long, a fifth
may let others pass. Answers end by chance, at a letter that the random weights pick now and then,
or at `max_tokens`. When a request has queued, `Backend.expected_wait` is asked once.

Beside it stands the trivial predictor: the mean wait of the requests that have started by then.
Both are compared on the requests that both say something about and that waited at all. Ratios are
of the wait that came: 0.5 is half of it too much or too little.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_guarded_llm import Backend, Event, GuardedLLMError

SHORT, LONG = 24, 240  # tokens at most
STOP = "e"  # where answers end by chance
WAITED = 0.05  # seconds; who starts sooner did not wait
PROMPT = "Tell me what you know about number {}, and about everything before it. "


@dataclass
class Told:
    """One request.

    Attributes:
        at: when it queued.
        expected: seconds, as it was told then; None if nothing was known, or it had started.
        mean: of the waits that were over then; None if there were none.
        wait: that came; None if it never started.
    """

    at: float
    expected: float | None = None
    mean: float | None = None
    wait: float | None = None


class Watch:
    """Asks about each request when it has queued, and notes when it starts."""

    def __init__(self, backend: Backend) -> None:
        self.told: dict[str, Told] = {}
        self._backend = backend
        self._waits: list[float] = []
        self._position = 0
        self._news: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._leave = backend.record.follow(lambda: self._news.put(True))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._leave()
        self._news.put(False)
        self._thread.join()

    def _run(self) -> None:
        while self._news.get():
            events, self._position = self._backend.record.since(self._position)
            for event in events:
                self._take(event)

    def _take(self, event: Event) -> None:
        name = event.request_id or ""
        if event.kind == "request.queued":
            mean = statistics.fmean(self._waits) if self._waits else None
            expected = self._backend.expected_wait(name)
            self.told[name] = Told(event.time, expected, mean)
        elif event.kind == "request.started" and name in self.told:
            told = self.told[name]
            told.wait = event.time - told.at
            if told.wait >= WAITED:
                self._waits.append(told.wait)


def ask(backend: Backend, model: str, prompt: str, options: dict[str, Any]) -> None:
    with contextlib.suppress(GuardedLLMError):
        backend.generate(model, prompt, timeout=600, **options)


def ask_all(backend: Backend, models: Sequence[str], args: argparse.Namespace) -> None:
    """Ask at random for so long, and wait for every answer."""
    chance = random.Random(args.seed)
    asking: list[threading.Thread] = []
    end = time.monotonic() + args.seconds
    while time.monotonic() < end:
        tokens = LONG if chance.random() < 1 / 3 else SHORT
        options: dict[str, Any] = {
            "max_tokens": tokens,
            "stop": [STOP],
            "temperature": 1.0,
            "seed": chance.randrange(10**6),
            "priority": "batch" if chance.random() < 1 / 5 else "interactive",
        }
        prompt = PROMPT.format(chance.randrange(1000)) * chance.randint(1, 6)
        asking.append(
            threading.Thread(target=ask, args=(backend, chance.choice(models), prompt, options))
        )
        asking[-1].start()
        time.sleep(chance.expovariate(args.rate))
    for thread in asking:
        thread.join()


def quantiles(errors: Sequence[float]) -> tuple[float, float]:
    """Median and 90th percentile."""
    ordered = sorted(errors)
    return statistics.median(ordered), ordered[min(int(len(ordered) * 0.9), len(ordered) - 1)]


def report(told: Sequence[Told]) -> None:
    """Print the errors of both predictors."""
    waited = [one for one in told if one.wait is not None and one.wait >= WAITED]
    both = [one for one in waited if one.expected is not None and one.mean is not None]
    print(f"{len(told)} requests, of which {len(waited)} waited; compared on {len(both)}.")
    if not both:
        return
    middle, high = quantiles([one.wait or 0.0 for one in both])
    print(f"They waited {middle:.2f} s (median), {high:.2f} s (90th percentile).")
    print(f"{'error':22}{'seconds':>10}{'90 %':>10}{'relative':>10}{'90 %':>10}")
    predictors: dict[str, Callable[[Told], float]] = {
        "expected wait": lambda one: one.expected or 0.0,
        "mean wait so far": lambda one: one.mean or 0.0,
    }
    for name, predict in predictors.items():
        errors = [abs(predict(one) - (one.wait or 0.0)) for one in both]
        shares = [error / (one.wait or 1.0) for error, one in zip(errors, both, strict=True)]
        numbers = (*quantiles(errors), *quantiles(shares))
        print(f"{name:22}" + "".join(f"{number:10.2f}" for number in numbers))


def measure(models: Sequence[str], args: argparse.Namespace) -> Sequence[Told]:
    """Run the load on these model folders."""
    with Backend(max_active=2, load_wait=20, prefix_cache=0) as first:
        sizes = [first.load(model).memory_bytes for model in models]
        budget = first.memory()[0] - min(sizes) // 2  # one of them has to leave
    backend = Backend(
        max_active=args.max_active, load_wait=20, prefix_cache=0, memory_budget=budget
    )
    with backend:
        watch = Watch(backend)
        ask_all(backend, models, args)
        watch.close()
    return list(watch.told.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["tiny", "tiny", "tiny"])
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--rate", type=float, default=1.2, help="requests in a second")
    parser.add_argument("--max-active", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write what was told of each here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        models = [str(Path(scratch) / f"{shape}-{n}") for n, shape in enumerate(args.shapes)]
        for shape, model in zip(args.shapes, models, strict=True):
            subprocess.run([sys.executable, "-m", "benchmarks.shapes", shape, model], check=True)
        told = measure(models, args)
    report(told)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(one) for one in told], indent=2) + "\n")


if __name__ == "__main__":
    main()
