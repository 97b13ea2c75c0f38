"""The incident at any size: a long answer on a large model, a small model asked meanwhile.

    python -m benchmarks.incident --large llama-70b --small phi3-mini --seconds 105 --at 56

For each `load_wait` the same long answer runs, and after `--at` seconds a request for
the other model arrives. Printed: when its first token came, how long its load was
deferred and took, how long the long answer stood still, and whether the long answer's
text was the same as without any neighbour; and before that, as a control, whether it is
the same twice without one. Runs that are in the file of `--json` already
are not made again, so that what takes long can be done in parts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from mlx_guarded_llm import Backend, Result
from mlx_guarded_llm.record import overlaps

from .shapes import SHAPES

QUESTION = "Tell me the whole history of lighthouses."


def replay(backend: Backend, large: str, small: str, tokens: int, at: float) -> dict[str, Any]:
    """Run it once; the small model must not be resident. Seconds throughout."""
    answers: dict[str, Result] = {}

    def long_answer() -> None:
        answers["large"] = backend.generate(large, QUESTION, max_tokens=tokens)

    thread = threading.Thread(target=long_answer)
    began = time.monotonic()
    thread.start()
    time.sleep(at)
    asked = time.monotonic()
    stream = backend.stream(small, "Hello?", max_tokens=32)
    first = next(stream)
    waited = time.monotonic() - asked
    last = [first, *stream][-1]
    thread.join()
    assert last.guard is not None
    return {
        "first_token": waited,
        "deferred": last.guard.deferred,
        "loading": last.guard.loading,
        "paused": answers["large"].guard.paused,
        "total": time.monotonic() - began,
        "overlaps": len(overlaps(backend.timeline())),
        "text": answers["large"].text,
    }


def calibrate(backend: Backend, large: str, seconds: float, at_most: int) -> int:
    """How many tokens the large model makes in that many seconds."""
    backend.generate(large, QUESTION, max_tokens=64)  # kernels are compiled here
    result = backend.generate(large, QUESTION, max_tokens=128)
    rate = (result.usage.completion_tokens - 1) / result.guard.decode
    return min(max(int(rate * seconds), 32), at_most)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", choices=SHAPES, default="tiny")
    parser.add_argument("--small", choices=SHAPES, default="tiny")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--at", type=float, default=4.0)
    parser.add_argument("--load-wait", type=float, nargs="+", default=[120.0, 2.0, 0.0])
    parser.add_argument("--folder", type=Path, help="where the models are made, and kept")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trace", type=Path, help="Perfetto trace of the last run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = args.folder or Path(scratch)
        folders = []
        for name, shape, seed in (("large", args.large, 1), ("small", args.small, 2)):
            folder = home / f"{name}-{shape}"
            command = [sys.executable, "-m", "benchmarks.shapes", shape, str(folder)]
            subprocess.run([*command, "--seed", str(seed)], check=True)
            folders.append(str(folder))
        run(args, *folders)


def run(args: argparse.Namespace, large: str, small: str) -> None:
    """All the runs, printed as they end."""
    known: dict[str, Any] = {"tokens": 0, "alone": "", "rows": []}
    if args.json and args.json.exists():
        known = json.loads(args.json.read_text())
    made = {row["load_wait"] for row in known["rows"]}
    print(f"{args.large} answers for about {args.seconds:g} s, {args.small} asked at {args.at:g} s")
    print("load_wait  first token  deferred  loading  paused  total  overlaps  same text")
    for load_wait in args.load_wait:
        if load_wait in made:
            continue
        with Backend(load_wait=load_wait, prefix_cache=0) as backend:
            backend.load(large)
            if not known["tokens"]:
                known["tokens"] = calibrate(backend, large, args.seconds, 6000)
                answer = backend.generate(large, QUESTION, max_tokens=known["tokens"])
                known["alone"] = answer.text
                again = backend.generate(large, QUESTION, max_tokens=known["tokens"])
                known["repeats"] = again.text == answer.text
                print(f"twice without a neighbour: same text {known['repeats']}", flush=True)
            row = replay(backend, large, small, known["tokens"], args.at)
            if args.trace:
                backend.write_trace(args.trace)
        same = row.pop("text") == known["alone"]
        row = {"load_wait": load_wait, "same": same, "tokens": known["tokens"], **row}
        known["rows"].append(row)
        if args.json:
            args.json.write_text(json.dumps(known, indent=1))
        print(
            f"{load_wait:8.0f}s {row['first_token']:11.2f}s {row['deferred']:8.2f}s "
            f"{row['loading']:7.2f}s {row['paused']:6.2f}s {row['total']:5.1f}s "
            f"{row['overlaps']:9} {row['same']!s:>10}",
            flush=True,
        )


if __name__ == "__main__":
    main()
