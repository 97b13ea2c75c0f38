"""Microseconds for each decision of the guard, with ever more waiting.

    python -m benchmarks.guard [--json PATH] [--rounds 7] [--calls 200]

The queue stands while each decision is taken: `a` generates on all its places and its
queue, the loads or both are long. What is measured is one call of the guard, its event
and actions included; the clock does not advance.

- submit: a request joins the queue of a busy model.
- cycle: a generation ends and the next in the queue starts.
- tick: time passes, nothing is due.
- deadline: the question when something will be.
- cancel: the newest waiting request is taken back.
- job: a load is asked for and taken back.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns
from typing import TypeVar

from mlx_guarded_llm.guard import Guard, Start
from mlx_guarded_llm.memory.ledger import Ledger

STANDING = [(0, 0), (100, 0), (1_000, 0), (10_000, 0), (0, 1), (0, 10_000), (10_000, 10_000)]
PLACES = 8
Result = TypeVar("Result")
Samples = dict[str, list[float]]


class Footprint:
    """A model of one byte, so that memory is counted but never short."""

    weight_bytes = 1
    state_bytes = 0
    whole_texts = False

    def kv_bytes(self, tokens: int) -> int:
        return tokens

    def prefill_bytes(self, chunk_tokens: int) -> int:
        return chunk_tokens


def standing(requests: int, jobs: int) -> tuple[Guard, Ledger, list[str]]:
    """A guard with this much waiting, and the ids of its active generations."""
    ledger = Ledger(1 << 40)
    guard = Guard(room=ledger, max_active=PLACES, max_queue=1 << 30, load_wait=1e9)
    for model in ("a", "b", "c"):
        ledger.know_model(model, Footprint())  # type: ignore[arg-type]
        guard.ask_load(0, f"first-{model}", model)
        guard.job_ended(0, f"first-{model}")
    for i in range(PLACES):
        guard.submit(0, f"active-{i}", "a")
    for i in range(requests):
        ledger.know_request(f"r{i}", "a", 1)
        guard.submit(0, f"r{i}", "a", expires=1e9 + i)
    for i in range(jobs):
        ledger.know_model(f"m{i}", Footprint())  # type: ignore[arg-type]
        guard.ask_load(0, f"j{i}", f"m{i}")
    return guard, ledger, [f"active-{i}" for i in range(PLACES)]


def measure(requests: int, jobs: int, calls: int) -> Samples:
    """Microseconds per call, for each decision, `calls` of them."""
    guard, ledger, active = standing(requests, jobs)
    ledger.know_model("new", Footprint())  # type: ignore[arg-type]
    clock: Samples = {name: [] for name in ("submit", "cycle", "tick", "deadline", "cancel", "job")}

    def timed(name: str, call: Callable[..., Result], *args: object, **options: object) -> Result:
        begin = perf_counter_ns()
        result = call(*args, **options)
        clock[name].append((perf_counter_ns() - begin) / 1_000)
        return result

    def load_and_cancel(job_id: str) -> None:
        guard.ask_load(1, job_id, "new")
        guard.cancel_job(1, job_id)

    for i in range(calls):
        ledger.know_request(f"new-{i}", "a", 1)
        timed("submit", guard.submit, 1, f"new-{i}", "a", expires=1e9)
        timed("tick", guard.tick, 1)
        timed("deadline", guard.next_deadline)
        timed("cancel", guard.cancel, 1, f"new-{i}")
        ledger.forget_request(f"new-{i}", "a")
        timed("job", load_and_cancel, f"n{i}")
        # One ends and the next starts; another joins behind, so that the queue stands.
        ledger.know_request(f"next-{i}", "a", 1)
        guard.submit(1, f"next-{i}", "a", expires=1e9)
        _, actions = timed("cycle", guard.ended, 1, active.pop(0))
        active += [action.request_id for action in actions if isinstance(action, Start)]
        assert len(active) == PLACES
    return clock


def table(rows: list[dict[str, object]]) -> Iterator[str]:
    """The medians in microseconds, one line for each queue."""
    names = [name for name in rows[0] if name not in ("requests", "jobs")]
    yield f"{'requests':>9} {'jobs':>7} " + " ".join(f"{name:>16}" for name in names)
    for row in rows:
        cells = (f"{row[n]['median']:.1f} ({row[n]['min']:.1f})" for n in names)  # type: ignore[index]
        yield f"{row['requests']:>9} {row['jobs']:>7} " + " ".join(f"{c:>16}" for c in cells)
    for row in rows[1:]:
        ratios = (row[n]["median"] / rows[0][n]["median"] for n in names)  # type: ignore[index]
        yield f"{row['requests']:>9} {row['jobs']:>7} " + " ".join(f"{r:>15.2f}x" for r in ratios)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Microseconds per decision of the guard.")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args(arguments)
    rows: list[dict[str, object]] = []
    medians: dict[tuple[int, int], list[Samples]] = {queue: [] for queue in STANDING}
    for _ in range(options.rounds):  # round by round, so that a slow minute hits all alike
        for queue in STANDING:
            medians[queue].append(measure(*queue, options.calls))
    for (requests, jobs), rounds in medians.items():
        row: dict[str, object] = {"requests": requests, "jobs": jobs}
        for name in rounds[0]:
            of_rounds = [statistics.median(samples[name]) for samples in rounds]
            row[name] = {"median": statistics.median(of_rounds), "min": min(of_rounds)}
        rows.append(row)
    print("Microseconds per decision: median of the rounds' medians (least of them), then")
    print("the median as a multiple of that with nothing waiting.\n")
    print("\n".join(table(rows)))
    if options.json is not None:
        about = {"python": sys.version.split()[0], "machine": platform.machine()}
        numbers = {**about, "rounds": options.rounds, "calls": options.calls, "rows": rows}
        options.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
