"""Many clients at one server, some of whom behave badly, with everything checked.

    python -m tests.soak.serve --clients 200 --seconds 300 [--seed N]

A server process of scripted models is asked by clients of a process of its own, here, which
gives way to the server: who asks a server is not on its cores. Each client draws what it does
next: a whole answer, a stream, a stream that it leaves, a request that it leaves before the
answer, a body that is wrong, a load or an unload of a model, which the next request loads
again. What must hold:

- Nothing is lost: every answer that was waited for is the script of its model, every stream
  ends with `[DONE]`, and every refusal has a status that was to be expected.
- At the end the queue is empty and nothing runs. Descriptors, threads and open connections of
  the server are those of the warmed-up server (`COUNT_SLACK`), and its resident memory has not
  grown by more than `RSS_SLACK` from the first third of the run to the last.
- No engine dies, and SIGTERM ends the server with code 0.

It measures, and fails beyond `HEALTH_P99` and `LONGEST_STALL` if `--strict` asks for it: how
long `/health` takes, and the longest time that the server's event loop did not turn, by a
clock within the server. Beside these it prints what tells a busy machine from a busy server: for
how long of that time the loop's thread computed, and the longest garbage collection, and
when these were: all clients come in the same moment, and their first requests are one long turn.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil

from mlx_guarded_llm.testing.tiny import make_scripted_model

COUNT_SLACK = 4  # threads and descriptors: a fetch may be ending just now
RSS_SLACK = 64 * 1024**2
HEALTH_P99 = 0.050  # seconds
LONGEST_STALL = 0.100
GIVE_WAY = 10  # of 19
TURN = 0.005  # seconds that the clock in the event loop sleeps
PROBE = 0.05  # seconds between two looks at /health
PATIENCE = 240.0  # seconds for one answer; there are two hundred clients and a few cores
SCRIPTS = {
    "paris": "The capital of France is Paris, and no other city, whatever you may have heard.",
    "rome": "All roads lead to Rome.",
    "oslo": "Oslo is in Norway, where the winters are long and the nights are longer.",
}
EXPECTED = (429, 503)  # of a full queue; everything else has to be answered
BAD_BODIES: tuple[tuple[bytes, int], ...] = (
    (b"{", 400),
    (b"[]", 400),
    (b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}', 404),
    (b'{"model": "paris", "messages": []}', 400),
    (b'{"model": "paris", "messages": [{"role": "user", "content": 5}]}', 400),
    (b"\xff\xfe", 400),
)


@dataclass
class Run:
    """What one run has seen. `faults` holds what was off."""

    url: str
    dice: Random
    until: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    late: float = 0.0  # seconds that a sleep beside the server took too long
    samples: list[tuple[int, int, int]] = field(default_factory=list)  # rss, fds, threads

    def fault(self, text: str) -> None:
        if len(self.faults) < 20:
            self.faults.append(text)
        self.outcomes["FAULT"] += 1


# ---- the clients -------------------------------------------------------------------------


async def client(run: Run, number: int) -> None:
    """One client, which begins again and again."""
    dice = Random(run.dice.getrandbits(32) + number)
    acts = (whole, streamed, left_stream, left_whole, bad_body, switched)
    weights = (30, 30, 15, 10, 10, 5)
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    # Without certificates, of which each client would read all there are.
    timeout = httpx.Timeout(PATIENCE, pool=10)  # of a connection, which each has for itself
    async with httpx.AsyncClient(
        base_url=run.url, timeout=timeout, limits=limits, verify=False
    ) as http:
        while time.monotonic() < run.until:
            act = dice.choices(acts, weights)[0]
            try:
                run.outcomes[f"{act.__name__}: {await act(run, http, dice)}"] += 1
            except httpx.HTTPError as error:
                run.fault(f"{act.__name__}: {type(error).__name__}: {error}")


def question(dice: Random, *, stream: bool = False) -> tuple[str, dict[str, Any]]:
    model = dice.choice(list(SCRIPTS))
    words = " ".join(
        dice.choice(("where", "what", "why", "who")) for _ in range(dice.randint(1, 60))
    )
    messages = [{"role": "user", "content": words}]
    return model, {"model": model, "messages": messages, "stream": stream, "temperature": 0}


def refused(run: Run, what: str, status: int, text: str) -> str:
    if status not in EXPECTED:
        run.fault(f"{what}: {status} {text[:300]}")
    return str(status)


async def whole(run: Run, http: httpx.AsyncClient, dice: Random) -> str:
    model, body = question(dice)
    reply = await http.post("/v1/chat/completions", json=body)
    if reply.status_code != 200:
        return refused(run, "whole", reply.status_code, reply.text)
    text = reply.json()["choices"][0]["message"]["content"]
    if text != SCRIPTS[model]:
        run.fault(f"whole: {model} said {text!r}")
    return "ok"


async def streamed(run: Run, http: httpx.AsyncClient, dice: Random) -> str:
    model, body = question(dice, stream=True)
    async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            text = (await reply.aread()).decode(errors="replace")
            return refused(run, "streamed", reply.status_code, text)
        text, done = "", False
        async for line in reply.aiter_lines():
            data = line.removeprefix("data: ") if line.startswith("data: ") else ""
            if data == "[DONE]":
                done = True
            elif data:
                chunk = json.loads(data)
                if "error" in chunk:
                    return refused(run, "streamed", chunk["error"].get("status", 0), data)
                for choice in chunk["choices"]:
                    text += choice["delta"].get("content") or ""
    if not done or text != SCRIPTS[model]:
        run.fault(f"streamed: {model} said {text!r}, ended: {done}")
    return "ok"


async def left_stream(run: Run, http: httpx.AsyncClient, dice: Random) -> str:
    _, body = question(dice, stream=True)
    lines = dice.randint(0, 12)
    async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
        async for _ in reply.aiter_lines():
            lines -= 1
            if lines <= 0:
                break
    return "left"


async def left_whole(run: Run, http: httpx.AsyncClient, dice: Random) -> str:
    _, body = question(dice)
    try:
        # By a client of its own, whose connections are closed with it: a pool that is
        # cancelled while it connects may keep that place for ever.
        async with (
            httpx.AsyncClient(base_url=run.url, timeout=PATIENCE, verify=False) as own,
            asyncio.timeout(dice.uniform(0.001, 1.0)),
        ):
            await own.post("/v1/chat/completions", json=body)
    except TimeoutError:
        return "left"
    return "was quicker"


async def bad_body(run: Run, http: httpx.AsyncClient, dice: Random) -> str:
    content, status = dice.choice(BAD_BODIES)
    headers = {"content-type": "application/json"}
    reply = await http.post("/v1/chat/completions", content=content, headers=headers)
    if reply.status_code != status or not reply.json()["error"]["message"]:
        run.fault(f"bad_body: {content!r} gave {reply.status_code}: {reply.text[:300]}")
    return "refused"


async def switched(run: Run, http: httpx.AsyncClient, dice: Random) -> str:
    what, model = dice.choice(("load", "unload")), dice.choice(list(SCRIPTS))
    reply = await http.post(f"/models/{what}", json={"model": model})
    if reply.status_code != 200:
        return refused(run, f"{what} of {model}", reply.status_code, reply.text)
    return what


# ---- what is measured --------------------------------------------------------------------


def probe(url: str) -> None:
    """A process of its own, so that two hundred clients do not count in what it measures.

    It looks at `/health` until its standard input ends, and writes down how long it took, and
    how much longer than asked for it slept itself: no process on this machine does better.
    """
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    with httpx.Client(base_url=url, timeout=60, verify=False) as http:
        while not over.is_set():
            began = time.monotonic()
            time.sleep(PROBE)
            slept = time.monotonic()
            reply = http.get("/health")
            took = time.monotonic() - slept
            right = reply.status_code == 200 and not reply.json()["engine_deaths"]
            late = slept - began - PROBE
            print(json.dumps([took, late, "" if right else reply.text]), flush=True)


@asynccontextmanager
async def probed(run: Run) -> AsyncIterator[None]:
    """Have it probed meanwhile."""
    command = [sys.executable, "-m", "tests.soak.serve", "--probe", run.url]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            took, late, wrong = json.loads(line)
            run.health.append(took)
            run.late = max(run.late, late)
            if wrong:
                run.fault(f"health: {wrong}")

    reader = asyncio.create_task(read())
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await reader
        await process.wait()


async def sampler(run: Run, process: psutil.Process) -> None:
    """Look every second at what the server holds."""
    while time.monotonic() < run.until:
        run.samples.append(held(process))
        await asyncio.sleep(1.0)


def held(process: psutil.Process) -> tuple[int, int, int]:
    return process.memory_info().rss, process.num_fds(), process.num_threads()


async def drained(url: str) -> dict[str, Any]:
    """What `/health` says when nothing is under way any more, or after a minute."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        end = time.monotonic() + 60
        while True:
            told: dict[str, Any] = (await http.get("/health")).json()
            if (not told["running"] and not told["waiting"]) or time.monotonic() > end:
                return told
            await asyncio.sleep(0.05)


async def metrics(url: str) -> dict[str, float]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        lines = (await http.get("/metrics")).text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def go(run: Run, clients: int, seconds: float, process: psutil.Process, folder: Path) -> None:
    """The warm-up, the run, and what is left after it."""
    async with httpx.AsyncClient(base_url=run.url, timeout=PATIENCE) as http:
        for _ in range(6):
            await whole(run, http, run.dice)
    (folder / "warm").touch()
    before = held(process)
    print(f"start: {before[0] / 1e6:.0f} MB, {before[1]} fds, {before[2]} threads", flush=True)
    run.until = time.monotonic() + seconds
    async with probed(run):
        os.nice(GIVE_WAY)
        await asyncio.gather(sampler(run, process), *(client(run, n) for n in range(clients)))
    told = await drained(run.url)
    if told["running"] or told["waiting"]:
        run.fault(f"places leak: {told}")
    end = time.monotonic() + 30
    while (after := held(process)) and time.monotonic() < end:
        if after[1] <= before[1] + COUNT_SLACK and after[2] <= before[2] + COUNT_SLACK:
            break
        await asyncio.sleep(0.2)
    print(f"end:   {after[0] / 1e6:.0f} MB, {after[1]} fds, {after[2]} threads", flush=True)
    for name, place in (("descriptors", 1), ("threads", 2)):
        if after[place] > before[place] + COUNT_SLACK:
            run.fault(f"{name} leak: {before[place]} before, {after[place]} after")
    third = max(1, len(run.samples) // 3)
    early = statistics.median(sample[0] for sample in run.samples[:third])
    late = statistics.median(sample[0] for sample in run.samples[-third:])
    print(f"resident: {early / 1e6:.0f} MB in the first third, {late / 1e6:.0f} in the last")
    if late > early + RSS_SLACK:
        run.fault(f"memory grows: {early / 1e6:.0f} MB, then {late / 1e6:.0f}")


# ---- the server --------------------------------------------------------------------------


def serve(folder: Path, ready: Path) -> None:
    """The server's process: as `mlx-guarded serve`, with a clock in its event loop."""
    from mlx_guarded_llm.server import Settings, open_backend
    from mlx_guarded_llm.server import running as running_module

    models = {name: {"model": str(folder / name)} for name in SCRIPTS}
    guard = {"load_wait": 1.0, "fairness_window": 0.5, "offline": True, "timeout": PATIENCE}
    settings = Settings.model_validate({"port": 0, "models": models, "guard": guard})
    backend = open_backend(settings)
    stall, collection = Longest(), Longest()

    def collecting(phase: str, _: object) -> None:
        if phase == "start":
            collection.begin()
        else:
            collection.end()

    gc.callbacks.append(collecting)

    async def clock() -> None:
        await asyncio.to_thread(_wait_for, folder / "warm")  # packages are imported on first use
        stall.forget()
        collection.forget()
        while True:
            stall.begin()
            await asyncio.sleep(TURN)
            stall.end(less=TURN)

    def begun(serving: running_module.Serving) -> None:
        clock.task = asyncio.ensure_future(clock())  # type: ignore[attr-defined]
        ready.write_text(serving.url)

    try:
        running_module.run(backend, settings, begun)
    finally:
        backend.close()
    print(json.dumps([stall.longest, collection.longest]), flush=True)


class Longest:
    """The longest of something that happens again and again.

    Attributes:
        longest: seconds, those of computing, and when it began, in seconds since `forget`.
    """

    def __init__(self) -> None:
        self._began = (0.0, 0.0)
        self.forget()

    def forget(self) -> None:
        """What was so far does not count."""
        self.longest = (0.0, 0.0, 0.0)
        self._since = time.monotonic()

    def begin(self) -> None:
        self._began = (time.monotonic(), time.thread_time())

    def end(self, *, less: float = 0.0) -> None:
        took = time.monotonic() - self._began[0] - less
        computed = time.thread_time() - self._began[1]
        self.longest = max(self.longest, (took, computed, self._began[0] - self._since))


def _wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.05)


def main() -> int:
    """Run, and say how it went."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=None, help="of the dice; drawn if not given")
    parser.add_argument("--strict", action="store_true", help="fail if it is slow, too")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        probe(options.probe)
        return 0
    if options.serve:
        serve(options.serve, options.serve / "url")
        return 0
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    print(f"serve: {options.clients} clients, {options.seconds:g} s, seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model, script in SCRIPTS.items():
            make_scripted_model(folder / model, script)
        command = [sys.executable, "-m", "tests.soak.serve", "--serve", str(folder)]
        environment = {**os.environ, "MLX_GUARDED_CACHE_DIR": str(folder / "cache")}
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            run, code, said = _drive(server, folder, seed, options)
        finally:
            server.kill()
            server.wait()
    return _report(run, code, said, options, seed)


def _drive(
    server: subprocess.Popen[str], folder: Path, seed: int, options: argparse.Namespace
) -> tuple[Run, int, str]:
    url = folder / "url"
    while not (url.exists() and url.read_text()):
        if server.poll() is not None:
            raise SystemExit("the server ended before it had begun")
        time.sleep(0.05)
    run = Run(url.read_text(), Random(seed))
    asyncio.run(go(run, options.clients, options.seconds, psutil.Process(server.pid), folder))
    counted = asyncio.run(metrics(run.url))
    for name in ("requests_total", "engine_deaths", "events_lost", "pauses", "load_seconds_count"):
        for key, value in counted.items():
            if key.startswith(f"mlx_guarded_{name}"):
                print(f"  {key} {value:g}")
    server.send_signal(signal.SIGTERM)
    said, _ = server.communicate(timeout=120)
    return run, server.returncode, said


def _report(run: Run, code: int, said: str, options: argparse.Namespace, seed: int) -> int:
    stall, collection = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    if code:
        run.fault(f"the server ended with {code}")
    else:
        stall, collection = json.loads(said.splitlines()[-1])
    ordered = sorted(run.health)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    for outcome, count in sorted(run.outcomes.items()):
        print(f"  {outcome:<32} {count}")
    print(
        f"health: {len(ordered)} times, median {statistics.median(ordered) * 1000:.1f} ms, "
        f"p99 {p99 * 1000:.1f} ms, most {ordered[-1] * 1000:.1f} ms"
    )
    for what, (took, computed, at) in (
        ("longest stall of the event loop", stall),
        ("longest garbage collection", collection),
    ):
        print(
            f"{what}: {took * 1000:.1f} ms, of which {computed * 1000:.1f} ms computing, "
            f"after {at:.1f} s"
        )
    print(f"longest stall of a process beside it that only sleeps: {run.late * 1000:.1f} ms")
    if options.strict and p99 > HEALTH_P99:
        run.fault(f"the p99 of /health is {p99 * 1000:.1f} ms")
    if options.strict and stall[0] > LONGEST_STALL:
        run.fault(f"the event loop stood still for {stall[0] * 1000:.1f} ms")
    for fault in run.faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    word = f"FAILED, {len(run.faults)} faults" if run.faults else "ok"
    print(f"serve: {word}: {sum(run.outcomes.values())} requests, seed {seed}")
    return 1 if run.faults else 0


if __name__ == "__main__":
    sys.exit(main())
