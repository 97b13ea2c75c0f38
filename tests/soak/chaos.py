"""The worker is killed again and again, and nobody who asks may notice more than a pause.

    python -m tests.soak.chaos --kills 200 [--seed N] [--spare-worker]

Eight clients ask three small models and an embedder, whole, in pieces, from an event loop,
and leave or cancel some; beside them models are loaded and unloaded and users' functions run.
Meanwhile the worker is struck: by signals at chosen moments (while it starts, loads,
prefills, decodes, unloads, between two frames, twice in a row), and by faults planted in it
(an abort, an exit, an MLX error, a standstill in the middle of a step, a load, an unload).
What must hold:

- Every answer is the one that the same request got before the first kill.
- Every request ends, none is lost, and it says that it was resumed when and only when the
  record says that it was interrupted.
- Each kill is in the record once, with its right cause, and no other death is.
- After each round nothing is left of any request, neither here nor in the worker; there is
  one child process, and after `close` none. Threads and descriptors do not grow
  (`COUNT_SLACK`), nor does memory here (`RSS_SLACK`) or in the worker (`MLX_SLACK`).

Moments and kinds are drawn from the seed; what they hit is up to the clock. Exit code 0, or
1 with the seed when something was off.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import functools
import gc
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import psutil

from mlx_guarded_llm import Backend, Catalog, Embeddings, Result
from mlx_guarded_llm.errors import EngineDied, PreparingFailed
from tests.soak import faults, questions
from tests.soak.kills import Journal, Killer
from tests.soak.questions import EMBEDDER, MODELS, PATIENCE, Question

CLIENTS = 8
ROUND = 20  # kills between two looks at what is left
END_LIMIT = PATIENCE + 60.0  # seconds for a client's last request, and for queues to drain
COUNT_SLACK = 2
RSS_SLACK = 48 * 1024**2
MLX_SLACK = 64 * 1024


@dataclasses.dataclass(frozen=True)
class Sample:
    """What is held after a round, every model unloaded."""

    threads: int
    fds: int
    rss: int
    worker_active: int

    def __str__(self) -> str:
        return (
            f"{self.threads} threads, {self.fds} fds, {self.rss / 1e6:.0f} MB resident; "
            f"{self.worker_active} bytes in the worker's MLX"
        )


class Chaos:
    """One run. `faults` holds what was off; the first one ends it."""

    def __init__(self, *, seed: int, stall_timeout: float, spare: bool, folder: Path) -> None:
        self.seed = seed
        self.faults: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.resumed = 0
        self.samples: list[Sample] = []
        self.journal = Journal()
        self._dice = Random(seed)
        self._count = threading.Lock()
        self._answers: dict[Question, Result | Embeddings] = {}
        self._over = threading.Event()
        aliases = questions.make_models(folder)
        self._backend = Backend(
            isolation="process",
            catalog=Catalog(aliases_file=aliases, cache_dir=folder / "cache"),
            offline=True,
            memory_budget="1GiB",
            prefix_cache="16MiB",
            prefill_step_size=32,
            load_wait=0.05,
            fairness_window=0.05,
            timeout=PATIENCE,
            record_size=5000,
            on_progress=self.journal.moved,
            stall_timeout=stall_timeout,
            quarantine_after=None,
            spare_worker=spare,
        )
        self._children = 2 if spare else 1
        self.killer = Killer(
            self._backend,
            self.journal,
            self._dice,
            models=MODELS,
            stall_timeout=stall_timeout,
            fault=self._fault,
        )

    def go(self, kills: int) -> None:
        """Learn the answers, then strike until there were that many kills."""
        backend = self._backend
        before = psutil.Process().num_threads()
        with backend:
            self._learn()
            self._rest()
            print(f"{len(self._answers)} requests known; {self.samples[0]}", flush=True)
            while len(self.killer.struck) < kills and not self.faults:
                self._round(min(kills, len(self.killer.struck) + ROUND))
                self._rest()
                print(
                    f"{len(self.killer.struck)} kills, {self.outcomes['answers']} answers, "
                    f"{self.resumed} of them resumed; {self.samples[-1]}",
                    flush=True,
                )
            if not backend.close():
                self._fault("the backend did not close")
        self._check_gone(before)
        self._check_deaths()
        self._check_growth()

    # ---- before ------------------------------------------------------------------

    def _learn(self) -> None:
        """Ask everything once alone, and once all together: the yardstick must be firm."""
        asked = questions.questions()
        for question in asked:
            self._answers[question] = questions.ask(self._backend, question, question.name)
        for question in [q for q in asked if q.name == "greedy"]:
            answer = self._answers[question]
            assert isinstance(answer, Result)
            cut = questions.stopped(question, answer)
            self._answers[cut] = questions.ask(self._backend, cut, cut.name)
        with ThreadPoolExecutor(CLIENTS) as pool:
            ask = functools.partial(questions.ask, self._backend)
            names = [f"again-{n}" for n in range(len(self._answers))]
            again = pool.map(ask, self._answers, names)
            for (question, first), second in zip(self._answers.items(), again, strict=True):
                if wrong := questions.differences(first, second):
                    self._fault(f"before any kill, {question.model} {question.name}: {wrong}")

    # ---- a round -----------------------------------------------------------------

    def _round(self, until: int) -> None:
        self._over.clear()
        seeds = [self._dice.getrandbits(32) for _ in range(CLIENTS + 1)]
        works = [functools.partial(self._ask_on, n, Random(seeds[n])) for n in range(CLIENTS)]
        works.append(functools.partial(self._disturb, Random(seeds[-1])))
        threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True, name=f"chaos-{n}")
            for n, work in enumerate(works)
        ]
        for thread in threads:
            thread.start()
        with self._judged("a kill"):
            while len(self.killer.struck) < until and not self.faults:
                self.killer.strike()
        self._over.set()
        end = time.monotonic() + END_LIMIT
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                self._fault(f"{thread.name} never came back")
                faulthandler.dump_traceback(all_threads=True)
                return

    def _ask_on(self, client: int, dice: Random) -> None:
        dealt = questions.deal(list(self._answers), dice)
        for n, question in enumerate(dealt):
            if self._over.is_set() or self.faults:
                return
            identity = f"{len(self.samples)}-{client}-{n}"
            with self._judged(f"{question.model} {question.name} ({identity})"):
                self._ask(question, identity, dice)

    def _ask(self, question: Question, identity: str, dice: Random) -> None:
        expected, backend, heard = self._answers[question], self._backend, self.journal.heard
        if question.is_texts or dice.random() < 0.15:
            answer = questions.ask(backend, question, identity)
        elif dice.random() < 0.15:
            assert isinstance(expected, Result)
            self._cut(question, expected, identity, dice)
            return
        else:
            read = dice.choice((questions.read, questions.read, questions.read_async))
            answer = read(backend, question, identity, heard)
        interrupted = identity in self.journal.interrupted
        self.journal.interrupted.discard(identity)
        if wrong := questions.differences(expected, answer):
            wrong += f"\n{backend.explain(identity)}"
        elif answer.guard.resumed != interrupted:
            wrong = f"resumed is {answer.guard.resumed}, the record says {interrupted}"
        if wrong:
            self._fault(f"{question.model} {question.name} ({identity}): {wrong}")
        with self._count:
            self.outcomes["answers"] += 1
            self.resumed += answer.guard.resumed

    def _cut(self, question: Question, expected: Result, identity: str, dice: Random) -> None:
        after = dice.randrange(60)
        text: str | None
        if dice.random() < 0.5:
            text, how = questions.left(self._backend, question, identity, after), "left"
        else:
            text = questions.cancelled(self._backend, question, identity, after)
            how = "cancelled"
        self.journal.interrupted.discard(identity)
        if text is not None and not questions.is_beginning(expected, question, text):
            self._fault(
                f"{question.model} {question.name} ({identity}), {how} after {after} pieces: "
                f"{text!r} does not begin {expected.text!r}\n{self._backend.explain(identity)}"
            )
        with self._count:
            self.outcomes[how] += 1

    def _disturb(self, dice: Random) -> None:
        """Loads, unloads and users' functions, now and then."""
        while not self._over.wait(dice.uniform(0.05, 0.6)) and not self.faults:
            model = dice.choice((*MODELS, EMBEDDER))
            what = dice.choice(("load", "unload", "run", "tokens"))
            with self._judged(f"{what} of {model}"):
                if what == "load":
                    self._backend.load(model, timeout=PATIENCE)
                elif what == "unload":
                    self._backend.unload(model, timeout=PATIENCE)
                elif what == "tokens":
                    assert self._backend.tokens("noise", "abc", raw=True, timeout=PATIENCE)
                else:
                    what = self._run_foreign(dice)
                with self._count:
                    self.outcomes[what] += 1

    def _run_foreign(self, dice: Random) -> str:
        numbers = [dice.randrange(1000) for _ in range(9)]
        try:
            total = self._backend.run(functools.partial(faults.add, numbers))
        except EngineDied:
            return "run cut off"  # as it says: it is not tried again
        assert total == sum(numbers), total
        return "run"

    # ---- after a round -----------------------------------------------------------

    def _rest(self) -> None:
        """Wait until everything has ended, unload everything, and look what is left."""
        if self.faults:
            return
        self._wait_for("requests", self._left)
        for info in self._backend.models():
            self._backend.unload(info.name, timeout=PATIENCE)
        active, kept = self._backend.run(faults.what_is_left, timeout=PATIENCE)
        if kept:
            self._fault(f"of ended requests the worker keeps {kept}")
        self._wait_for("models or memory", self._promised)
        self._wait_for("processes", self._strangers)
        first = self.samples[0] if self.samples else None
        if first is not None and active > first.worker_active + MLX_SLACK:
            self._fault(f"the worker holds {active} bytes in MLX; at first {first.worker_active}")
        sample = self._sample(active)
        for _ in range(100):  # threads of the dead are about to end
            if first is None or sample.threads <= first.threads:
                break
            time.sleep(0.05)
            sample = self._sample(active)
        self.samples.append(sample)

    @staticmethod
    def _sample(active: int) -> Sample:
        gc.collect()
        process = psutil.Process()
        return Sample(process.num_threads(), process.num_fds(), process.memory_info().rss, active)

    def _wait_for(self, what: str, left: Callable[[], str]) -> None:
        end = time.monotonic() + END_LIMIT
        while held := left():
            if time.monotonic() > end:
                self._fault(f"{what} that nobody lets go of: {held}")
                return
            time.sleep(0.05)

    def _left(self) -> str:
        dispatcher = self._backend._dispatcher
        guard = dispatcher.guard
        held: dict[str, Any] = {
            "models": [m.name for m in self._backend.models() if m.active or m.waiting],
            "requests": dispatcher.pending.requests,
            "ids in the engine": dispatcher.pending.by_engine_id,
            "jobs": dispatcher.pending.jobs,
            "stages": dispatcher.listeners.stages,
            "fetches": dispatcher.registry.fetching,
            "the guard's requests": guard._state.requests,
            "the guard's jobs": guard._state.jobs,
        }
        return ", ".join(f"{name}: {list(things)}" for name, things in held.items() if things)

    def _promised(self) -> str:
        ledger = self._backend._dispatcher.ledger
        assert ledger is not None
        extra = ledger.used_bytes - ledger.prefix_cache_bytes
        names = [info.name for info in self._backend.models()]
        return f"{extra} bytes, models {names}" if extra or names else ""

    def _strangers(self) -> str:
        children = psutil.Process().children(recursive=True)
        pids = [child.pid for child in children]
        if len(pids) == self._children and self._backend.worker_pid in pids:
            return ""
        return f"{children}, the worker is {self._backend.worker_pid}"

    # ---- at the end --------------------------------------------------------------

    def _check_gone(self, threads: int) -> None:
        end = time.monotonic() + 10.0
        process = psutil.Process()
        while process.children(recursive=True) or process.num_threads() > threads:
            if time.monotonic() > end:
                alive = [thread.name for thread in threading.enumerate()]
                self._fault(f"left after close: {process.children(recursive=True)}, {alive}")
                return
            time.sleep(0.05)

    def _check_deaths(self) -> None:
        journal, struck = self.journal, self.killer.struck
        for pid, death in journal.deaths.items():
            if pid not in struck:
                self._fault(f"nobody struck {pid}, which died: {death}")
        if unnoticed := struck - set(journal.deaths):
            self._fault(f"struck, and not in the record: {unnoticed}")
        if journal.died_twice:
            self._fault(f"died twice in the record: {journal.died_twice}")
        if journal.kinds["engine.failed"]:
            self._fault("the engine was given up")

    def _check_growth(self) -> None:
        third = max(1, len(self.samples) // 3)
        early, late = self.samples[:third], self.samples[-third:]
        for name, slack in (("threads", COUNT_SLACK), ("fds", COUNT_SLACK), ("rss", RSS_SLACK)):
            before = statistics.median(getattr(sample, name) for sample in early)
            after = statistics.median(getattr(sample, name) for sample in late)
            if after > before + slack:
                self._fault(f"{name} grew from {before:.0f} to {after:.0f}")

    # ---- small things ------------------------------------------------------------

    def _fault(self, text: str) -> None:
        self.faults.append(text)
        print(f"FAULT: {text}", flush=True)

    @contextlib.contextmanager
    def _judged(self, what: str) -> Iterator[None]:
        try:
            yield
        except PreparingFailed as error:  # more engines died with it than it is given
            if "engines ended" not in str(error):
                self._fault(f"{what}: {error}")
            with self._count:
                self.outcomes["suspected"] += 1
        except Exception as error:
            self._fault(f"{what}: {''.join(traceback.format_exception(error))}")

    def _guarded(self, work: Callable[[], None]) -> None:
        with self._judged(threading.current_thread().name):
            work()


def main() -> int:
    """Run, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="of the dice; drawn if not given")
    parser.add_argument("--stall-timeout", type=float, default=4.0, help="seconds")
    parser.add_argument("--spare-worker", action="store_true")
    parser.add_argument("--log", type=Path, help="where to write what the library logs")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    print(f"chaos: {options.kills} kills, seed {seed}", flush=True)
    faulthandler.enable()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),  # the last words of the workers
    ):
        chaos = Chaos(
            seed=seed,
            stall_timeout=options.stall_timeout,
            spare=options.spare_worker,
            folder=Path(folder),
        )
        logger = logging.getLogger("mlx_guarded_llm")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(chaos.journal)
        if options.log:
            file = logging.FileHandler(options.log, mode="w")
            file.setFormatter(logging.Formatter("%(relativeCreated)d %(name)s %(message)s"))
            logger.addHandler(file)
        chaos.go(options.kills)
    report(chaos)
    word = f"FAILED, {len(chaos.faults)} faults" if chaos.faults else "ok"
    print(
        f"chaos: {word}: {len(chaos.killer.struck)} kills, {chaos.outcomes['answers']} answers, "
        f"{chaos.resumed} resumed, {len(chaos.journal.started) - 1} restarts, "
        f"{time.monotonic() - began:.0f} s, seed {seed}"
    )
    return 1 if chaos.faults else 0


def report(chaos: Chaos) -> None:
    """Print what was done and hit."""
    killer = chaos.killer
    works = sorted({work for _, work in killer.kills})
    print(f"  {'kills':<12}" + "".join(f"{work:>10}" for work in works))
    for kind in sorted({kind for kind, _ in killer.kills}):
        counts = "".join(f"{killer.kills[kind, work]:>10}" for work in works)
        print(f"  {kind:<12}{counts}")
    moments = ", ".join(f"{name} {n}" for name, n in killer.moments.most_common())
    print(f"  moments: {moments}")
    print("  " + ", ".join(f"{name} {count}" for name, count in chaos.outcomes.most_common()))
    if killer.late:
        print(
            f"  a death was known after {statistics.median(killer.late) * 1000:.0f} ms in the "
            f"middle, {max(killer.late) * 1000:.0f} ms at most"
        )


if __name__ == "__main__":
    sys.exit(main())
