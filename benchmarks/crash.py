"""From a crash in the middle of an answer to its next token, and where that time goes.

    python -m benchmarks.crash [--model smollm2-135m-bf16 | --shape tiny]

A stream is under way; its worker gets SIGABRT. Timed are: until the death is known, until
a new worker works (starting Python, importing MLX, the rest of its start), until the model
is in memory again, until the prompt and what was said of the answer are computed again, and
the token. Rounds without and with `spare_worker=True` take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from mlx_guarded_llm import Backend, Catalog, Event

from .shapes import SHAPES, chosen, device_name

PROMPT = "Write a long story about a lighthouse keeper."
SPARE_LIMIT = 60.0  # seconds for the spare worker to be ready
PARTS = ("death seen", "worker", "of it spawn", "of it import", "load", "prefill", "total")


def crash(backend: Backend, model: str, tokens: int, after: int) -> dict[str, float]:
    """Abort the worker after that many pieces of an answer. Returns the seconds of each part.

    Raises:
        RuntimeError: the answer was not resumed.
    """
    stream = backend.stream(model, PROMPT, max_tokens=tokens)
    for _ in range(after):
        next(stream)
    pid = backend.worker_pid
    assert pid is not None
    struck = time.monotonic()
    os.kill(pid, signal.SIGABRT)
    heard = [(chunk, time.monotonic()) for chunk in stream]
    guard = heard[-1][0].guard
    if guard is None or not guard.resumed:
        raise RuntimeError("the answer was not resumed; raise --tokens")
    events = [event for event in backend.events() if event.time >= struck]
    return _parts(struck, events, [when for _, when in heard])


def _parts(struck: float, events: Sequence[Event], heard: Sequence[float]) -> dict[str, float]:
    """Seconds of each part, from the record and the times at which pieces came."""
    died = _first(events, "engine.died").time
    started = _first(events, "engine.started")
    loaded = _first(events, "load.finished").time
    token = next(when for when in heard if when > loaded)
    return {
        "death seen": died - struck,
        "worker": started.time - died,
        "of it spawn": started.details["spawn"],
        "of it import": started.details["import"],
        "load": loaded - started.time,
        "prefill": token - loaded,
        "total": token - struck,
    }


def _first(events: Sequence[Event], kind: str) -> Event:
    return next(event for event in events if event.kind == kind)


def await_spare(backend: Backend) -> None:
    """Wait until the second process of a backend has nothing to do any more."""
    end = time.monotonic() + SPARE_LIMIT
    me = psutil.Process()
    while time.monotonic() < end:
        spares = [child for child in me.children() if child.pid != backend.worker_pid]
        if spares and all(spare.cpu_percent(0.5) < 5 for spare in spares):
            return
    raise TimeoutError(f"no spare worker was ready in {SPARE_LIMIT:.0f} s")


def measure(catalog: Catalog, model: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each way, with the middle of its rounds."""
    taken: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(args.rounds):
        for spare, rounds in taken.items():
            # One backend, one crash: nothing is left of the last one.
            with Backend(
                isolation="process", spare_worker=spare, prefix_cache=0, catalog=catalog
            ) as backend:
                backend.generate(model, PROMPT, max_tokens=8)
                if spare:
                    await_spare(backend)
                rounds.append(crash(backend, model, args.tokens, args.after))
    return [
        {"spare_worker": spare, "rounds": rounds, **_middles(rounds)}
        for spare, rounds in taken.items()
    ]


def _middles(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {part: statistics.median(r[part] for r in rounds) for part in PARTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-bf16")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--after", type=int, default=24, help="pieces before the crash")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with (
        chosen(args.shape, args.model) as (model, _folder, catalog),
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),  # the last words of the workers
    ):
        with Backend(isolation="process", catalog=catalog) as backend:
            device = backend.run(device_name)
        print(f"{args.shape or args.model} on {device}, seconds")
        rows = measure(catalog, model, args)
    print(f"{'spare worker':12} " + " ".join(f"{part:>12}" for part in PARTS) + "  total from to")
    for row in rows:
        totals = [round_["total"] for round_ in row["rounds"]]
        print(
            f"{'yes' if row['spare_worker'] else 'no':12} "
            + " ".join(f"{row[part]:12.3f}" for part in PARTS)
            + f"  {min(totals):.3f} to {max(totals):.3f}"
        )
    if args.json:
        args.json.write_text(json.dumps({"device": device, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
