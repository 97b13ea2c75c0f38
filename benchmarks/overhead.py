"""What the guard, the parent process and the imports cost, without a token of any model.

    python -m benchmarks.overhead [--rounds 7] [--calls 200] [--json PATH]

Guard: microseconds of one call of it, its ledger, events, record and actions included. The
queue stands while each is made: `a` generates on all its places, and its queue, the loads
or both are long. The clock does not advance.

- submit: a request joins the queue of a busy model.
- cancel: the newest waiting request is taken back.
- start: a request comes and starts at once. Two decisions: it joins the queue, it starts.
- end: the last generation of a model ends.
- cycle: a generation ends and the next in the queue starts. Two decisions as well.
- tick: time passes, nothing is due.
- deadline: the question when something will be.
- job: a load is asked for and taken back, in two calls.

Parent: memory and threads of a process that serves a model, beside those of a bare Python.

Import: seconds of a fresh process above those of a bare Python.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any, TypeVar

import psutil

from mlx_guarded_llm.guard import Action, Guard, GuardLimits, Start
from mlx_guarded_llm.memory.footprint import Footprint
from mlx_guarded_llm.memory.ledger import Ledger
from mlx_guarded_llm.record import Record

from .shapes import SHAPES, chosen

STANDING = [(0, 0), (100, 0), (1_000, 0), (10_000, 0), (0, 1), (0, 10_000), (10_000, 10_000)]
CALLS = ("submit", "cancel", "start", "end", "cycle", "tick", "deadline", "job")
PLACES = 8
LLAMA_8B = Footprint(  # at 4 bit
    weight_bytes=4_517_000_000,
    kv_bytes_per_token=131_072,
    activation_bytes=110_592,
    logits_bytes=1_026_048,
)
# What the engine tells of an answer, all of which goes into its event.
TOLD = {"prefill": 0.1, "decode": 2.0, "prompt_tokens": 300, "completion_tokens": 100}
IMPORTS = (
    "import mlx_guarded_llm",
    "from mlx_guarded_llm import Backend",
    "from mlx_guarded_llm import GuardedLLM",
    "from langchain_core.language_models import BaseChatModel",
    "from langchain_mlx_guarded import ChatMLXGuarded",
    "from llama_index.core.llms.function_calling import FunctionCallingLLM",
    "from llama_index.llms.mlx_guarded import MLXGuarded",
)
IMPORT_ROUNDS = 5
HEAVY = ("mlx", "transformers", "llguidance", "huggingface_hub", "rich", "typer")
BARE = 'import sys; print("served", flush=True); sys.stdin.read()'
SERVE = """
import sys
from mlx_guarded_llm import Backend
with Backend() as backend:
    for n in range(4):
        backend.generate(sys.argv[1], f"Tell me about number {n}.", max_tokens=8)
    print("served", flush=True)
    sys.stdin.read()
"""

Answer = TypeVar("Answer")
Samples = dict[str, list[float]]


# ---- the guard ---------------------------------------------------------------------------


def submit(
    guard: Guard, now: float, request_id: str, model: str, *, expires: float | None = None
) -> list[Action]:
    """A request that has at once all that it takes to start."""
    guard.submit(now, request_id, model, expires=expires)
    guard.fetched(request_id)
    return guard.prepared(now, request_id)


def standing(requests: int, jobs: int) -> tuple[Guard, Ledger, list[str]]:
    """A guard with this much waiting, and the ids of its active generations."""
    ledger = Ledger(1 << 60)
    limits = GuardLimits(max_active=PLACES, max_queue=1 << 30, load_wait=1e9)
    guard = Guard(limits, ledger=ledger, emit=Record().append)
    for model in ("a", "b", "c"):
        ledger.know_model(model, LLAMA_8B)
        guard.ask_load(0, f"first-{model}", model)
        guard.job_ended(0, f"first-{model}")
    active = [f"active-{i}" for i in range(PLACES)]
    for request_id in active:
        ledger.know_request(request_id, "a", 1_000)
        submit(guard, 0, request_id, "a")
    for i in range(requests):
        ledger.know_request(f"r{i}", "a", 1_000)
        submit(guard, 0, f"r{i}", "a", expires=1e9 + i)
    for i in range(jobs):
        ledger.know_model(f"m{i}", LLAMA_8B)
        guard.ask_load(0, f"j{i}", f"m{i}")
    return guard, ledger, active


def time_calls(requests: int, jobs: int, calls: int) -> Samples:
    """Microseconds of each kind of call, `calls` of them."""
    guard, ledger, active = standing(requests, jobs)
    ledger.know_model("new", LLAMA_8B)
    samples: Samples = {name: [] for name in CALLS}

    def timed(name: str, call: Callable[..., Answer], *args: Any, **options: Any) -> Answer:
        begin = perf_counter_ns()
        answer = call(*args, **options)
        samples[name].append((perf_counter_ns() - begin) / 1_000)
        return answer

    def load_and_cancel(job_id: str) -> None:
        guard.ask_load(1, job_id, "new")
        guard.cancel_job(1, job_id)

    for i in range(calls):
        ledger.know_request(f"new-{i}", "a", 1_000)
        timed("submit", submit, guard, 1, f"new-{i}", "a", expires=1e9)
        timed("tick", guard.tick, 1)
        timed("deadline", guard.next_deadline)
        timed("cancel", guard.cancel, 1, f"new-{i}")
        ledger.forget_request(f"new-{i}", "a")
        timed("job", load_and_cancel, f"n{i}")
        ledger.know_request(f"one-{i}", "b", 1_000)
        assert timed("start", submit, guard, 1, f"one-{i}", "b", expires=1e9)
        timed("end", guard.ended, 1, f"one-{i}", cause="stop", **TOLD)
        # One ends and the next starts; another joins behind, so that the queue stands.
        ledger.know_request(f"next-{i}", "a", 1_000)
        submit(guard, 1, f"next-{i}", "a", expires=1e9)
        _, actions = timed("cycle", guard.ended, 1, active.pop(0), cause="stop", **TOLD)
        active += [action.request_id for action in actions if isinstance(action, Start)]
        assert len(active) == PLACES
    return samples


def decisions(rounds: int, calls: int) -> list[dict[str, Any]]:
    """A row for each queue, printed: the median of the rounds' medians, and their least."""
    medians: dict[tuple[int, int], list[dict[str, float]]] = {queue: [] for queue in STANDING}
    for _ in range(rounds):  # round by round, so that a slow minute hits all alike
        for queue in STANDING:
            samples = time_calls(*queue, calls)
            medians[queue].append({name: statistics.median(samples[name]) for name in CALLS})
    rows = []
    print("Microseconds of one call of the guard (least of the rounds):\n")
    print(f"{'requests':>9} {'loads':>7}" + "".join(f"{name:>14}" for name in CALLS))
    for (requests, jobs), taken in medians.items():
        row: dict[str, Any] = {"requests": requests, "jobs": jobs}
        for name in CALLS:
            of_rounds = [one[name] for one in taken]
            row[name] = {"median": statistics.median(of_rounds), "min": min(of_rounds)}
        cells = (f"{row[name]['median']:.1f} ({row[name]['min']:.1f})" for name in CALLS)
        print(f"{requests:>9} {jobs:>7}" + "".join(f"{cell:>14}" for cell in cells))
        rows.append(row)
    return rows


# ---- the parent --------------------------------------------------------------------------


def size(code: str, *arguments: str) -> dict[str, int]:
    """Bytes and threads of a Python that has run some code, without those of its children.

    Args:
        code: prints "served" at the end, and leaves when its standard input is closed.
    """
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as python:
        assert python.stdout is not None and python.stdin is not None
        if python.stdout.readline().strip() != b"served":
            raise RuntimeError("the model could not be served")
        process = psutil.Process(python.pid)
        found = {"bytes": int(process.memory_info().rss), "threads": process.num_threads()}
        python.stdin.close()
    return found


def parent(shape: str) -> dict[str, Any]:
    """A parent that has served a model of this shape, beside a bare Python; printed."""
    with chosen(shape, "") as (_, folder, _):
        bare, serving = size(BARE), size(SERVE, folder)
    above = serving["bytes"] - bare["bytes"]
    print(
        f"\nParent of a worker: {serving['bytes'] / 1e6:.0f} MB, {above / 1e6:.0f} MB above "
        f"a bare Python's; {serving['threads']} threads."
    )
    return {"bare": bare, "serving": serving, "above": above}


# ---- imports -----------------------------------------------------------------------------


def imports() -> list[dict[str, Any]]:
    """Seconds that each import takes in a fresh process, and what it brings; printed."""
    taken: dict[str, list[float]] = {statement: [] for statement in ("pass", *IMPORTS)}
    for _ in range(IMPORT_ROUNDS + 1):  # the first one fills the file cache, and may compile
        for statement, seconds in taken.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            seconds.append(time.perf_counter() - began)
    bare = statistics.median(taken.pop("pass")[1:])
    rows = []
    print(f"\nSeconds above the {bare:.3f} of a bare Python (least, most):\n")
    for statement, (_, *seconds) in taken.items():
        above = [second - bare for second in seconds]
        row: dict[str, Any] = {
            "statement": statement,
            "median": statistics.median(above),
            "min": min(above),
            "max": max(above),
            "brings": brought(statement),
        }
        spread = f"{row['median']:6.3f} ({row['min']:.3f}, {row['max']:.3f})"
        print(f"{spread}  {statement:70}  {', '.join(row['brings'])}".rstrip())
        rows.append(row)
    return rows


def brought(statement: str) -> list[str]:
    """Which of the heavy packages an import brings with it."""
    code = f"{statement}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=200, help="of the guard, in each round")
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="of what the parent serves")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    args = parser.parse_args()
    numbers: Mapping[str, Any] = {
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "rounds": args.rounds,
        "calls": args.calls,
        "guard": decisions(args.rounds, args.calls),
        "parent": parent(args.shape),
        "imports": imports(),
    }
    if args.json is not None:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
