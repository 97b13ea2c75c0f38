"""A server, or its engine, is killed again and again under clients of `Backend.connect`.

    python -m tests.soak.remote --kills 100 [--seed N] [--small]

Eight clients, each with a connection of its own, ask `mlx-guarded serve` for answers that are
known: whole, in pieces, from an event loop, through `GuardedLLM`, and for vectors; some leave.
Meanwhile the server, which then starts anew at the same address, or the engine's process
behind it is killed. What must hold:

- Every request ends, and in time. It ends with the answer that the same request got before the
  first kill, or with one of `TOLD`, and a `ServerUnavailable` has the very text that had come.
- After each kill, clients get answers again.
- At the end nothing runs or waits in the server, no process of a killed server is left, and
  the clients have no more threads and descriptors than at first.

Moments and targets are drawn from the seed; what they hit is up to the clock. Exit code 0, or
1 with the seed when something was off.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from mlx_guarded_llm import Backend, BaseBackend, GuardedLLM, RetryPolicy
from mlx_guarded_llm.errors import (
    AttemptsExhausted,
    EngineDied,
    GuardedLLMError,
    LoadFailed,
    MemoryRefused,
    ModelQuarantined,
    PreparingFailed,
    ServerUnavailable,
)
from mlx_guarded_llm.results import Chunk, Collector, Embeddings, Result
from tests.soak import questions
from tests.soak.questions import EMBEDDER, MODELS, Question

CLIENTS = 8
DEADLINE = 120.0  # seconds for one request; those of `GuardedLLM` as well
END = DEADLINE + 60.0  # seconds after which a request that has not ended hangs
BEGIN = 120.0  # seconds in which a server begins
COUNT_SLACK = 2  # threads and descriptors
# What a kill may be told as, beside an answer. The last ones blame the model or the prompt that
# was at work in several engines that died.
TOLD = (
    ServerUnavailable,
    EngineDied,
    AttemptsExhausted,
    LoadFailed,
    PreparingFailed,
    ModelQuarantined,
    MemoryRefused,
)
Ask = Callable[[BaseBackend, Question, list[Chunk]], Result | Embeddings]


class Server:
    """`mlx-guarded serve` on a Unix socket, which is killed and begins anew."""

    def __init__(self, folder: Path) -> None:
        questions.make_models(folder)
        entries = {name: str(folder / name) for name in (*MODELS, EMBEDDER)}
        lines = ["drain = 5", "[guard]", 'memory_budget = "1GiB"', "load_wait = 0.05"]
        lines += ["fairness_window = 0.05", "offline = true"]
        for name, where in entries.items():
            lines += [f"[models.{name}]", f"model = {json.dumps(where)}"]
        config = folder / "server.toml"
        config.write_text("\n".join(lines))
        self.url = f"unix://{folder}/socket"
        script = Path(sys.executable).with_name("mlx-guarded")
        self._command = [str(script), "serve", "--uds", f"{folder}/socket", "--config", str(config)]
        self._environment = {**os.environ, "MLX_GUARDED_CACHE_DIR": str(folder / "cache")}
        self._log = folder / "log"
        self._process: subprocess.Popen[str] | None = None
        self._known: list[psutil.Process] = []  # every process that a server had

    def begin(self) -> None:
        """Start it, and wait until it listens."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if "Serving" not in line:
            raise RuntimeError(f"the server did not begin: {line}{self.said()}")

    def kill(self) -> None:
        """End it as the kernel would."""
        assert self._process is not None
        self._engines()
        self._process.kill()
        self._process.communicate()

    def kill_engine(self, how: signal.Signals) -> bool:
        """End the process of its engine. Returns whether there was one."""
        engines = self._engines()
        for engine in engines:
            with contextlib.suppress(psutil.NoSuchProcess):
                engine.send_signal(how)
        return bool(engines)

    def end(self) -> int:
        """Ask it to end. Returns its exit code."""
        assert self._process is not None
        self._engines()
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=BEGIN)
        return self._process.returncode

    def left(self) -> list[psutil.Process]:
        """Processes of its engines that still run."""
        return [p for p in self._known if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def said(self) -> str:
        """The end of its log."""
        return self._log.read_text()[-3000:]

    def _engines(self) -> list[psutil.Process]:
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self._process.pid).children(recursive=True)
            self._known += [process for process in found if process not in self._known]
            return found
        return []


# ---- how clients ask ------------------------------------------------------------------------


def whole(backend: BaseBackend, question: Question, came: list[Chunk]) -> Result:
    assert isinstance(question.prompt, str)
    return backend.generate(question.model, question.prompt, timeout=DEADLINE, **question.options)


def in_pieces(backend: BaseBackend, question: Question, came: list[Chunk]) -> Result:
    assert isinstance(question.prompt, str)
    pieces = backend.stream(question.model, question.prompt, timeout=DEADLINE, **question.options)
    came.extend(pieces)
    return _gathered(came)


def from_a_loop(backend: BaseBackend, question: Question, came: list[Chunk]) -> Result:
    assert isinstance(question.prompt, str)
    prompt, take = question.prompt, came.append

    async def collect() -> None:
        async for chunk in backend.astream(
            question.model, prompt, timeout=DEADLINE, **question.options
        ):
            take(chunk)

    asyncio.run(collect())
    return _gathered(came)


def guarded(backend: BaseBackend, question: Question, came: list[Chunk]) -> Result:
    assert isinstance(question.prompt, str)
    return _llm(backend, question).generate(question.prompt, **question.options)


def guarded_in_pieces(backend: BaseBackend, question: Question, came: list[Chunk]) -> Result:
    assert isinstance(question.prompt, str)
    came.extend(_llm(backend, question).stream(question.prompt, **question.options))
    return _gathered(came)


def vectors(backend: BaseBackend, question: Question, came: list[Chunk]) -> Embeddings:
    return backend.embed(question.model, question.prompt, timeout=DEADLINE)


ASKS: Sequence[Ask] = (whole, in_pieces, from_a_loop, guarded, guarded_in_pieces)


def _llm(backend: BaseBackend, question: Question) -> GuardedLLM:
    retry = RetryPolicy(attempts=4, deadline=DEADLINE)
    return GuardedLLM(backend, question.model, retry=retry, on_degraded="mark")


def _gathered(came: list[Chunk]) -> Result:
    assert [chunk.finish_reason is not None for chunk in came].count(True) == 1, "no one end"
    collector = Collector()
    for chunk in came:
        collector.add(chunk)
    return collector.result()


# ---- the run --------------------------------------------------------------------------------


@dataclass
class Run:
    """What one run has seen. `faults` holds what was off; the first one ends it."""

    server: Server
    dice: Random
    answers: dict[Question, Result | Embeddings] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    right: int = 0
    resumed: int = 0  # of these
    told: int = 0
    had_text: int = 0  # of these
    over: threading.Event = field(default_factory=threading.Event)
    moved: threading.Event = field(default_factory=threading.Event)  # a right answer has come
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, text: str) -> None:
        """Something was off."""
        self.faults.append(text)
        print(f"FAULT: {text}", flush=True)

    # ---- before ------------------------------------------------------------------------

    def learn(self, models: Sequence[str]) -> None:
        """Ask everything once alone, and once all together: the yardstick must be firm."""
        with Backend.connect(self.server.url) as backend:
            for question in questions.questions():
                if question.model in models:
                    self.answers[question] = self._plainly(backend, question)
            with ThreadPoolExecutor(CLIENTS) as pool:
                again = pool.map(functools.partial(self._plainly, backend), self.answers)
                for (question, first), second in zip(self.answers.items(), again, strict=True):
                    if wrong := questions.differences(first, second):
                        self.fault(f"before any kill, {question.model} {question.name}: {wrong}")

    @staticmethod
    def _plainly(backend: BaseBackend, question: Question) -> Result | Embeddings:
        return (vectors if question.is_texts else whole)(backend, question, [])

    # ---- the clients -------------------------------------------------------------------

    def client(self, backend: BaseBackend, dice: Random) -> None:
        """One client, which asks until it is over."""
        for question in questions.deal(list(self.answers), dice):
            if self.over.is_set() or self.faults:
                return
            if not question.is_texts and dice.random() < 0.1:
                self._leave(backend, question, dice)
            else:
                ask = vectors if question.is_texts else dice.choice(ASKS)
                self._ask(backend, question, ask)

    def _ask(self, backend: BaseBackend, question: Question, ask: Ask) -> None:
        came: list[Chunk] = []
        what = f"{ask.__name__} of {question.model} {question.name}"
        try:
            answer = ask(backend, question, came)
        except TOLD as error:
            self._told(question, what, came, error)
            return
        except Exception as error:
            self.fault(f"{what}: {''.join(traceback.format_exception(error))}")
            return
        if wrong := questions.differences(self.answers[question], answer):
            self.fault(f"{what}: {wrong}")
        with self._lock:
            self.outcomes[f"{ask.__name__}: right"] += 1
            self.right += 1
            self.resumed += answer.guard.resumed
        self.moved.set()

    def _told(
        self, question: Question, what: str, came: Sequence[Chunk], error: GuardedLLMError
    ) -> None:
        """An error must have what had come, and that must be the beginning of the answer."""
        text = "".join(chunk.text for chunk in came)
        expected = self.answers[question]
        last = error.__cause__ if isinstance(error, AttemptsExhausted) else error
        if isinstance(last, ServerUnavailable):
            if came and last.text != text:
                self.fault(f"{what}: {last.text!r} was told, {text!r} had come")
            text = last.text
        if isinstance(expected, Result) and not questions.is_beginning(expected, question, text):
            self.fault(f"{what}: {text!r} does not begin {expected.text!r}")
        with self._lock:
            self.outcomes[f"{what.split(maxsplit=1)[0]}: {type(error).__name__}"] += 1
            self.told += 1
            self.had_text += bool(text)

    def _leave(self, backend: BaseBackend, question: Question, dice: Random) -> None:
        """Leave a stream in its middle, or cancel it."""
        assert isinstance(question.prompt, str)
        expected, text, after = self.answers[question], "", dice.randrange(40)
        leave = dice.random() < 0.5
        try:
            with backend.stream(
                question.model, question.prompt, timeout=DEADLINE, **question.options
            ) as stream:
                for n, chunk in enumerate(stream):
                    text += chunk.text
                    if n == after and leave:
                        break
                    if n == after:
                        backend.cancel(stream.request_id)
        except TOLD:
            pass
        except Exception as error:
            self.fault(f"a stream that is left: {''.join(traceback.format_exception(error))}")
        assert isinstance(expected, Result)
        if not questions.is_beginning(expected, question, text):
            self.fault(f"what was left: {text!r} does not begin {expected.text!r}")
        with self._lock:
            self.outcomes["left" if leave else "cancelled"] += 1

    # ---- the killer --------------------------------------------------------------------

    def strike(self) -> None:
        """One kill, at some moment, and the next answer after it."""
        time.sleep(self.dice.uniform(0.0, 1.5))
        target = self.dice.choice(("server", "engine"))
        if target == "engine":
            how = self.dice.choice((signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV))
            if not self.server.kill_engine(how):
                return
        else:
            self.server.kill()
            time.sleep(self.dice.choice((0.0, self.dice.uniform(0.0, 4.0))))
            self.server.begin()
        self.kills[target] += 1
        if self.kills.total() % 10 == 0:
            print(f"{self.kills.total()} kills, {self.right} right answers", flush=True)
        self.moved.clear()
        if not self.moved.wait(END) and not self.faults:
            self.fault(f"after a kill of the {target} nobody got an answer in {END:.0f} s")
        with Backend.connect(self.server.url) as backend:
            for model in (*MODELS, EMBEDDER):
                backend.forgive(model)  # a kill was not its fault

    def go(self, kills: int) -> None:
        """Kill so often while the clients ask."""
        with contextlib.ExitStack() as ends:
            threads = []
            for n in range(CLIENTS):  # all are connected before the first kill
                backend = ends.enter_context(Backend.connect(self.server.url))
                work = functools.partial(self.client, backend, Random(self.dice.getrandbits(32)))
                thread = threading.Thread(
                    target=self._judged, args=(work,), daemon=True, name=f"client-{n}"
                )
                threads.append(thread)
            for thread in threads:
                thread.start()
            while self.kills.total() < kills and not self.faults:
                self._judged(self.strike)
            self.over.set()
            end = time.monotonic() + END
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))
                if thread.is_alive():
                    self.fault(f"{thread.name} never came back")
                    faulthandler.dump_traceback(all_threads=True)
                    return

    def _judged(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.fault("".join(traceback.format_exception(error)))

    # ---- after -------------------------------------------------------------------------

    def rest(self) -> None:
        """Nothing is left in the server."""
        with Backend.connect(self.server.url) as backend:
            if not _soon(lambda: not (backend.health().running or backend.health().waiting)):
                self.fault(f"not at rest: {backend.health()}")
        if code := self.server.end():
            self.fault(f"the server ended with {code}: {self.server.said()}")
        if not _soon(lambda: not self.server.left()):
            self.fault(f"processes are left: {self.server.left()}")


def _held() -> tuple[int, int]:
    """Threads and descriptors of this process, where the clients are."""
    process = psutil.Process()
    return process.num_threads(), process.num_fds()


def _soon(look: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60.0
    while not look():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Server]:
    """A server, killed at the latest at the end."""
    server = Server(folder)
    server.begin()
    try:
        yield server
    finally:
        server.kill()
        for process in server.left():
            process.kill()


def main() -> int:
    """Run, and say how it went."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="of the dice; drawn if not given")
    parser.add_argument("--small", action="store_true", help="with two of the models only")
    options = parser.parse_args()
    models = ("script", EMBEDDER) if options.small else (*MODELS, EMBEDDER)
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    print(f"remote: {options.kills} kills, seed {seed}", flush=True)
    faulthandler.enable()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as server:
        run = Run(server, Random(seed))
        run.learn(models)
        print(f"{len(run.answers)} requests known, {time.monotonic() - began:.0f} s", flush=True)
        before = _held()
        run.go(options.kills)
        run.rest()
        if not _soon(
            lambda: max(n - m for n, m in zip(_held(), before, strict=True)) <= COUNT_SLACK
        ):
            run.fault(f"threads and descriptors were {before}, and are {_held()}")
        if run.faults:
            print(server.said())
    for outcome, count in sorted(run.outcomes.items()):
        print(f"  {outcome:<36} {count}")
    word = f"FAILED, {len(run.faults)} faults" if run.faults else "ok"
    print(
        f"remote: {word}: {run.kills['server']} kills of the server, {run.kills['engine']} of its "
        f"engine; {run.right} right answers, {run.resumed} of them resumed; {run.told} errors, "
        f"{run.had_text} with what had come; {time.monotonic() - began:.0f} s, seed {seed}"
    )
    return 1 if run.faults else 0


if __name__ == "__main__":
    sys.exit(main())
