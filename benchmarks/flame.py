"""Where the engine's time goes: samples of its MLX thread as shares and as a flame graph.

    python -m benchmarks.flame [--model smollm2-135m-bf16 | --shape llama-8b] --plot flame.svg

Streams run without a pause in the worker, and py-spy looks at its MLX thread some hundred
times a second. A frame is a Python function; what it calls in MLX counts as its own time,
split by whether MLX is told what to do (`mx.async_eval`, which waits while its queue is
full), is waited for (`mx.eval`, `mx.synchronize`), or hands over values (`tolist`, which on
CUDA waits for all that is in flight). On macOS py-spy needs root.
"""

from __future__ import annotations

import argparse
import collections
import json
import linecache
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_guarded_llm import Backend

from .pace import PROMPT
from .shapes import SHAPES, chosen, device_name
from .side import run_all

RATE = 200  # samples a second
THREAD = "mlx-guarded-mlx"
ENDLESS = 4000  # tokens of an answer
WAITING = re.compile(r"\bmx\.(eval|synchronize)\(")
LAUNCHING = re.compile(r"\bmx\.async_eval\(")
READING = re.compile(r"\.tolist\(")
ROOTS = [Path(entry).resolve() for entry in sys.path if entry and Path(entry).is_dir()]
FRAME = re.compile(r"(?P<function>.+) \((?P<file>.+?)(:(?P<line>\d+))?\)$")

# What a sample is put down to: the first place that its frames are in, from the innermost.
PLACES = (
    ("mlx_guarded_llm/engine/decode/sampling.py", "sampling"),
    ("mlx_guarded_llm/engine/decode/penalties.py", "sampling"),
    ("mlx_guarded_llm/engine/decode/constraint.py", "grammar"),
    ("mlx_lm/models", "the model's graph"),
    ("mlx/nn", "the model's graph"),
    ("mlx_guarded_llm/engine/output/text.py", "text"),
    ("mlx_guarded_llm/engine/output/structure.py", "text"),
    ("mlx_guarded_llm/engine/output/calls", "text"),
    ("mlx_guarded_llm/engine/decode/batch.py", "the batch"),
    ("mlx_lm/generate.py", "the batch"),
    ("mlx_guarded_llm", "the engine"),
)

Stack = tuple[str, ...]  # from the outermost frame


class CannotSample(Exception):
    """py-spy gave no samples, with its reason."""


def sample(pid: int, seconds: float) -> dict[Stack, int]:
    """How often each stack of the MLX thread of a process was seen.

    Raises:
        CannotSample: py-spy is not installed, or must not look, or saw no such thread.
    """
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw"
        command: list[object] = [
            *(Path(sys.executable).with_name("py-spy"), "record", "--pid", pid),
            *("--duration", round(seconds), "--rate", RATE, "--format", "raw", "--output", raw),
            # --idle: to wait for the device is what the thread does most.
            *("--idle", "--threads", "--nonblocking", "--full-filenames"),
        ]
        try:
            done = subprocess.run(
                [str(part) for part in command], check=False, capture_output=True, text=True
            )
        except OSError as error:
            raise CannotSample(str(error)) from error
        if done.returncode or not raw.exists():
            raise CannotSample(done.stderr.strip())
        stacks = dict(_stacks(raw.read_text()))
    if not stacks:
        raise CannotSample(f"no thread of process {pid} is called {THREAD}")
    return stacks


def _stacks(raw: str) -> Iterator[tuple[Stack, int]]:
    """The stacks of the MLX thread, out of py-spy's lines."""
    for line in raw.splitlines():
        frames, _, count = line.rpartition(" ")
        thread, *stack = frames.split(";")
        if THREAD in thread and stack:
            yield tuple(stack), int(count)


def place(stack: Stack) -> str:
    """What a sample is put down to."""
    source = _source(stack[-1])
    if WAITING.search(source):
        return "waiting for MLX"
    if LAUNCHING.search(source):
        return "handing work to MLX"
    if READING.search(source):
        return "reading values"
    for frame in reversed(stack):
        name = short(frame)
        for start, what in PLACES:
            if f"({start}" in name:
                return what
    return "the thread's loop"


def _source(frame: str) -> str:
    """The line of source a frame is at."""
    found = FRAME.match(frame)
    if found is None or found["line"] is None:
        return ""
    return linecache.getline(found["file"], int(found["line"]))


def short(frame: str) -> str:
    """A frame with its file as it is imported, without the line."""
    found = FRAME.match(frame)
    if found is None:
        return frame
    file = Path(found["file"])
    if not file.is_absolute():  # it is short
        return frame
    names = [file.relative_to(root).as_posix() for root in ROOTS if file.is_relative_to(root)]
    return f"{found['function']} ({min(names, key=len, default=file.name)})"


def shares(stacks: Mapping[Stack, int]) -> dict[str, float]:
    """What part of the samples each place has, the largest first."""
    counts: collections.Counter[str] = collections.Counter()
    for stack, count in stacks.items():
        counts[place(stack)] += count
    total = counts.total()
    return {what: count / total for what, count in counts.most_common()}


def told(stacks: Mapping[Stack, int]) -> list[tuple[Stack, int]]:
    """The stacks with files as they are imported, and without lines."""
    counts: collections.Counter[Stack] = collections.Counter()
    for stack, count in stacks.items():
        counts[tuple(map(short, stack))] += count
    return counts.most_common()


def plot(path: Path, stacks: Mapping[Stack, int], *, title: str) -> None:
    """Draw the stacks: a frame is as wide as its share, callers are below."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    total = sum(stacks.values())
    deepest = max(map(len, stacks))
    figure, panel = pyplot.subplots(figsize=(12, 0.28 * deepest + 1), layout="constrained")
    _draw(panel, list(stacks.items()), left=0, depth=0, total=total)
    panel.set(xlim=(0, 1), ylim=(0, deepest), yticks=[], xlabel="share of the samples")
    panel.set_title(title, fontsize=10, loc="left")
    for edge in ("top", "right", "left"):
        panel.spines[edge].set_visible(False)
    figure.savefig(path)
    pyplot.close(figure)


def _draw(
    panel: Any, stacks: list[tuple[Stack, int]], *, left: float, depth: int, total: int
) -> None:
    """Draw the frames at a depth, and all that is above each."""
    above: dict[str, list[tuple[Stack, int]]] = {}
    for stack, count in stacks:
        if len(stack) > depth:
            above.setdefault(short(stack[depth]), []).append((stack, count))
    for name, part in sorted(above.items()):
        width = sum(count for _, count in part) / total
        colour = "lightblue" if "(mlx_guarded_llm" in name else "lightgrey"
        panel.barh(depth + 0.5, width, left=left, height=0.96, color=colour, edgecolor="white")
        if room := int(width * 150):
            panel.text(left + 0.002, depth + 0.5, name[:room], va="center", fontsize=6)
        _draw(panel, part, left=left, depth=depth + 1, total=total)
        left += width


def profile(backend: Backend, model: str, rows: int, seconds: float) -> dict[Stack, int]:
    """Sample the worker while that many streams run.

    Raises:
        CannotSample: see `sample`.
    """
    over = threading.Event()
    begun = threading.Barrier(rows + 1, timeout=600)
    found: list[dict[Stack, int] | CannotSample] = []

    def stream() -> None:
        first = True
        while not over.is_set():
            for chunk in backend.stream(model, PROMPT.format(0), max_tokens=ENDLESS):
                if first and chunk.text:
                    first = False
                    begun.wait()
                if over.is_set():
                    break

    def look() -> None:
        try:
            begun.wait()
            assert backend.worker_pid is not None
            found.append(sample(backend.worker_pid, seconds))
        except CannotSample as error:
            found.append(error)
        finally:
            over.set()

    run_all([stream] * rows + [look])
    if isinstance(found[0], CannotSample):
        raise found[0]
    return found[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-bf16")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--plot", type=Path, help="draw the flame graph")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with (
        chosen(args.shape, args.model) as (model, _folder, catalog),
        Backend(prefix_cache=0, catalog=catalog, max_active=64) as backend,
    ):
        device = backend.run(device_name)
        try:
            stacks = profile(backend, model, args.rows, args.seconds)
        except CannotSample as error:
            print(f"py-spy: {error}", file=sys.stderr)
            return 1
    title = f"the MLX thread, {args.rows} streams of {args.shape or args.model} on {device}"
    print(f"{title}, {sum(stacks.values())} samples")
    parts = shares(stacks)
    for what, part in parts.items():
        print(f"  {what:22} {part:6.1%}")
    if args.json:
        args.json.write_text(json.dumps({"title": title, "shares": parts, "stacks": told(stacks)}))
    if args.plot:
        plot(args.plot, stacks, title=title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
