"""What HTTP costs: the same answers through the Python API, a server and `Backend.connect`.

    python -m benchmarks.http [--model smollm2-135m-bf16 | --shape tiny] [--rounds 5]

The Python API is `GuardedLLM.astream` in this process, whose engine is in a worker. The
server is `mlx-guarded serve`, a process with a worker of its own, asked by httpx from this
process; `remote` is `GuardedLLM.astream` again, with a backend that asks that server. While one
side is measured the others are idle. Ratios are made of figures of one round.

- first: milliseconds from the call to the first piece, median of `--calls` calls in a row.
- one: tokens per second of one stream, the call included.
- many: tokens per second of `--rows` streams at once, all together.
- cpu: microseconds of processor time for each of these tokens, in this process and in the server's.
  Engines, which are processes of their own, are not in it. It depends less than the others on
  what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import httpx
import psutil

from mlx_guarded_llm import Backend, GuardedLLM

from .pace import PROMPT
from .shapes import SHAPES, chosen

SCRIPT = Path(sys.executable).with_name("mlx-guarded")
FIGURES = ("first", "one", "many", "cpu")
SIDES = ("python", "http", "remote")
# A side: streams one answer, and says how long the first piece took and how many tokens came.
Ask = Callable[[str, int], Awaitable[tuple[float, int]]]


def by_python(llm: GuardedLLM) -> Ask:
    async def ask(prompt: str, tokens: int) -> tuple[float, int]:
        began, first, count = time.perf_counter(), 0.0, 0
        async with llm.astream(prompt, max_tokens=tokens) as stream:
            async for chunk in stream:
                first = first or time.perf_counter() - began
                if chunk.usage is not None:
                    count = chunk.usage.completion_tokens
        return first, count

    return ask


def by_http(client: httpx.AsyncClient) -> Ask:
    async def ask(prompt: str, tokens: int) -> tuple[float, int]:
        began, first, count = time.perf_counter(), 0.0, 0
        body = {
            "model": "bench",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                for choice in chunk["choices"]:
                    if choice["delta"].get("content") or choice["finish_reason"]:
                        first = first or time.perf_counter() - began
                if chunk.get("usage"):
                    count = chunk["usage"]["completion_tokens"]
        return first, count

    return ask


def spent(processes: Sequence[psutil.Process]) -> float:
    """Seconds of processor time of these processes, without their children's."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


async def measure(
    ask: Ask, processes: Sequence[psutil.Process], args: argparse.Namespace
) -> dict[str, float]:
    """One round of one side."""
    firsts = [(await ask(PROMPT.format(n), 2))[0] for n in range(args.calls)]
    began = time.perf_counter()
    _, one = await ask(PROMPT.format(0), args.tokens)
    one_rate = one / (time.perf_counter() - began)
    before, began = spent(processes), time.perf_counter()
    many = await asyncio.gather(*(ask(PROMPT.format(n), args.tokens) for n in range(args.rows)))
    tokens, seconds = sum(count for _, count in many), time.perf_counter() - began
    return {
        "first": statistics.median(firsts) * 1000,
        "one": one_rate,
        "many": tokens / seconds,
        "cpu": (spent(processes) - before) / tokens * 1e6,
    }


@contextlib.contextmanager
def served(folder: str) -> Iterator[tuple[str, int]]:
    """A server of this model: its address and process id."""
    command = [str(SCRIPT), "serve", "--port", "0", "--model", f"bench={folder}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"at (http://\S+)/v1", server.stdout.readline())
        if found is None:
            raise RuntimeError("the server did not begin")
        yield found[1], server.pid
    finally:
        server.terminate()
        server.wait(60)


@contextlib.asynccontextmanager
async def sides(model: str, backend: Backend, url: str, rows: int) -> AsyncIterator[dict[str, Ask]]:
    limits = httpx.Limits(max_connections=rows, max_keepalive_connections=rows)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        llm = GuardedLLM(backend, model, on_degraded="mark")
        with Backend.connect(url) as server:
            remote = GuardedLLM(server, "bench", on_degraded="mark")
            yield {
                "python": by_python(llm),
                "http": by_http(client),
                "remote": by_python(remote),
            }


async def run(
    model: str, backend: Backend, url: str, pid: int, args: argparse.Namespace
) -> dict[str, list[dict[str, float]]]:
    """Every figure of every round, by side."""
    figures: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    own, server = psutil.Process(), psutil.Process(pid)
    async with sides(model, backend, url, args.rows) as asks:
        for round_ in range(args.rounds + 1):
            turns = list(asks.items())
            for side, ask in turns if round_ % 2 else reversed(turns):
                processes = [own] if side == "python" else [own, server]
                found = await measure(ask, processes, args)
                if round_:  # the first round loads models and compiles kernels
                    figures[side].append(found)
    return figures


def show(figures: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> None:
    """Print the medians, and what the others cost beside Python, with least and most."""
    names = {
        "first": "first piece, ms",
        "one": "one stream, tok/s",
        "many": f"{args.rows} streams, tok/s",
        "cpu": "their cpu, us/token",
    }
    print(
        f"{'':20}" + "".join(f"{side:>10}" for side in SIDES) + "   difference, or ratio of tok/s"
    )
    for figure in FIGURES:
        by_side = {side: [one[figure] for one in figures[side]] for side in SIDES}
        line = "".join(f"{statistics.median(by_side[side]):10.1f}" for side in SIDES)
        for side in SIDES[1:]:
            pairs = zip(by_side[side], by_side["python"], strict=True)
            costs = [h - p if figure in ("first", "cpu") else h / p for h, p in pairs]
            middle, least, most = statistics.median(costs), min(costs), max(costs)
            line += f"   {side} {middle:.3f} ({least:.3f} to {most:.3f})"
        print(f"{names[figure]:20}{line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-bf16")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    args = parser.parse_args()
    with (
        chosen(args.shape, args.model) as (model, folder, catalog),
        served(folder) as (url, pid),
        Backend(catalog=catalog) as backend,
    ):
        figures = asyncio.run(run(model, backend, url, pid, args))
    show(figures, args)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
