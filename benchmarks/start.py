"""The first answer of a fresh `Backend`, and the next token after a crash, for several Pythons.

    python -m benchmarks.start --side torch=/with/torch/bin/python --side plain=.venv/bin/python

Each side is an interpreter, and after a colon another checkout of this repository, if any. They
take turns. Timed are, in a process of its own: from the making of a `Backend` to its first answer,
and from the SIGKILL of its worker in the middle of an answer to the next piece of that. The model
is tiny, so what is timed is the start of the engine. `modules` is how many the worker has imported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlx_guarded_llm.testing.tiny import make_tiny_model

HERE = Path(__file__).parents[1]
PARTS = ("first answer", "next token", "modules")
CHILD = """
import json, os, signal, sys, time
from mlx_guarded_llm import Backend

def modules():
    import sys
    return len(sys.modules)

began = time.monotonic()
with Backend(offline=True, prefix_cache=0) as backend:
    backend.generate(sys.argv[1], "Hello", max_tokens=1)
    first = time.monotonic() - began
    count = backend.run(modules)
    stream = backend.stream(sys.argv[1], "Hello", max_tokens=1500, raw=True)
    for _ in range(8):
        next(stream)
    os.kill(backend.worker_pid, signal.SIGKILL)
    killed, events = time.monotonic(), len(backend.events())
    for chunk in stream:
        now = time.monotonic()
        if any(event.kind == "load.finished" for event in backend.events()[events:]):
            break
    print(json.dumps({"first answer": first, "next token": now - killed, "modules": count}))
    backend.close()
"""


def measure(python: str, tree: Path, model: Path) -> dict[str, float]:
    """One round of one side."""
    done = subprocess.run(
        [python, "-P", "-c", CHILD, str(model)],  # -P: not the folder that this runs in
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def show(name: str, rows: list[Mapping[str, float]]) -> None:
    cells = []
    for part in PARTS:
        values = [row[part] for row in rows]
        text = f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        cells.append(f"{text:>26}" if part != "modules" else f"{max(values):10.0f}")
    print(f"{name:12}", *cells, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", action="append", required=True, metavar="NAME=PYTHON[:CHECKOUT]")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sides: dict[str, tuple[str, Path]] = {}
    for side in args.side:
        name, _, where = side.partition("=")
        python, _, tree = where.partition(":")
        sides[name] = (python, Path(tree or HERE))
    rows: dict[str, list[Mapping[str, float]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        make_tiny_model(folder)
        for _ in range(args.rounds):
            for name, (python, tree) in sides.items():
                rows[name].append(measure(python, tree, Path(folder)))
    print(f"{'seconds':12}", *(f"{part:>{10 if part == 'modules' else 26}}" for part in PARTS))
    for name, measured in rows.items():
        show(name, measured)


if __name__ == "__main__":
    main()
