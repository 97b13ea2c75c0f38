"""Random use of the public API for a long time, with everything checked all along.

    python benchmarks/soak.py --minutes 30 [--seed N] [--models N]

Several threads and an asyncio loop share one backend that lives as long as the run; every
period a second backend with an odd configuration (a tight budget, a short queue, injected
faults) is opened, used and closed beside it. All of it runs under the witness, which aborts
the process at the first overlap. What must hold:

- Every error is one that the operation or the backend's configuration may cause.
- A scripted model's answer is its script, whatever else goes on.
- Every request ends, and after each period no queue holds anything.
- After each period, with all models unloaded, MLX holds what it held at the start
  (`MEMORY_SLACK`); threads and file descriptors do not grow (`COUNT_SLACK`), and resident
  memory of the last third of the run is not above that of the first by more than `RSS_SLACK`.

Exit code 0, or 1 with the seed when something was off, or -6 from the witness.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import faulthandler
import functools
import gc
import os
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import psutil

from mlx_guarded_llm import Backend, Catalog
from mlx_guarded_llm.backend.work import Job, Request
from mlx_guarded_llm.engine import rail
from mlx_guarded_llm.engine.generation import Generation
from mlx_guarded_llm.engine.prepare import PreparedRequest
from mlx_guarded_llm.errors import (
    BackendClosed,
    ContextOverflow,
    GenerationFailed,
    GuardedLLMError,
    InvalidRequest,
    LoadDeferredTimeout,
    MemoryRefused,
    ModelError,
    ModelInvalid,
    ModelNotFound,
    NoChatTemplate,
    NonFiniteLogits,
    QueueFull,
    RequestCancelled,
    RequestTimeout,
)
from mlx_guarded_llm.results import Result
from mlx_guarded_llm.testing.tiny import make_scripted_model, make_tiny_model

MEMORY_SLACK = 64 * 1024  # bytes of MLX memory beyond the start's, all models unloaded
COUNT_SLACK = 2  # threads and file descriptors: a fetch may be ending just now
RSS_SLACK = 64 * 1024**2
END_LIMIT = 120.0  # seconds for the last operation of a worker, and for a queue to drain
WORKERS = 3
TASKS = 3

SCRIPTS = (
    "The quick brown fox jumps over the lazy dog; the dog does not mind.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 東京、大阪 🦊!",
    "One, two, three. Four, five, six. Seven, eight, nine, and so on until the end of it.",
    'def answer() -> int:\n    """Not quite sure."""\n    return 42\n',
)
ARCHITECTURES = ("llama", "mamba", "gemma3_text", "gpt_oss", "gemma2", "qwen3", "phi3")
SYSTEM = "You are a patient assistant who has read every book of the library twice. " * 4


class Injected(Exception):
    """What a user's function raises."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of the run; `text` is None where the answer is noise."""

    name: str
    text: str | None = None
    reasoning: str = ""


@dataclasses.dataclass(frozen=True)
class Profile:
    """One way to configure a backend, and the errors that only it may cause."""

    name: str
    options: Mapping[str, Any]
    allows: tuple[type[BaseException], ...] = ()
    sabotage: bool = False


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the process holds after a period, every model unloaded."""

    threads: int
    fds: int
    rss: int
    active: int

    @classmethod
    def take(cls, backend: Backend) -> Sample:
        process = psutil.Process()
        gc.collect()
        return cls(
            process.num_threads(),
            process.num_fds(),
            process.memory_info().rss,
            backend.run(_active_memory, label="sample"),
        )

    def __str__(self) -> str:
        return (
            f"{self.threads} threads, {self.fds} fds, {self.rss / 1e6:.0f} MB resident, "
            f"{self.active} bytes in MLX"
        )


def _active_memory() -> int:
    import mlx.core as mx

    return mx.get_active_memory()


# ---- operations -------------------------------------------------------------------------

Operation = Callable[["Use"], Any]
_operations: list[tuple[int, tuple[type[BaseException], ...], Operation]] = []
_async_operations: list[tuple[int, tuple[type[BaseException], ...], Operation]] = []


def operation(weight: int, *allows: type[BaseException]) -> Callable[[Operation], Operation]:
    """An operation, how often it is chosen, and the errors that it may end with."""

    def add(function: Operation) -> Operation:
        kind = _async_operations if asyncio.iscoroutinefunction(function) else _operations
        kind.append((weight, allows, function))
        return function

    return add


@dataclasses.dataclass
class Use:
    """One worker's hold of a backend: what to use, and by which dice."""

    backend: Backend
    profile: Profile
    models: list[Model]
    broken: Mapping[str, Model]
    dice: Random

    def model(self) -> Model:
        return self.dice.choice(self.models)

    def scripted(self) -> Model:
        return self.dice.choice([model for model in self.models if model.text])

    def prompt(self) -> Any:
        question = f"Question {self.dice.randrange(8)}: " + "why " * self.dice.randrange(1, 12)
        if self.dice.random() < 0.5:
            return question
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"max_tokens": self.dice.choice((1, 3, 8, 20, 60))}
        if self.dice.random() < 0.4:
            options |= {"temperature": 0.8, "seed": self.dice.randrange(99)}
        if self.dice.random() < 0.2:
            options |= {"top_logprobs": self.dice.randrange(1, 5), "top_p": 0.9}
        return options

    def sleep(self, most: float) -> None:
        time.sleep(self.dice.uniform(0, most))


def check(model: Model, result: Result, stop: str | None = None) -> str:
    """The answer is the script, or its beginning where something cut it off."""
    assert result.guard.served_model.startswith(model.name), result.guard
    assert result.usage.completion_tokens <= 1024
    if model.text is not None:
        whole = model.text if stop is None else model.text[: model.text.index(stop)]
        if result.finish_reason == "stop":
            assert result.text == whole, (model.name, result.text)
            assert result.reasoning == model.reasoning, (model.name, result.reasoning)
        else:
            assert begins(whole, result.text), (model.name, result.text)
            assert model.reasoning.startswith(result.reasoning), (model.name, result.reasoning)
    return result.finish_reason


def begins(whole: str, text: str) -> bool:
    """Whether `text` is how `whole` begins; cut within a character it ends with U+FFFD."""
    return whole.startswith(text.removesuffix("\N{REPLACEMENT CHARACTER}"))


@operation(20)
def generate(use: Use) -> str:
    model = use.model()
    return check(model, use.backend.generate(model.name, use.prompt(), **use.options()))


@operation(6)
def generate_whole(use: Use) -> str:
    model = use.scripted()
    result = use.backend.generate(model.name, use.prompt(), max_tokens=200)
    assert result.finish_reason == "stop", result
    return check(model, result)


@operation(4)
def generate_to_stop_string(use: Use) -> str:
    model = use.scripted()
    assert model.text is not None
    at = use.dice.randrange(1, len(model.text) - 4)
    stop = model.text[at : at + 4]
    result = use.backend.generate(model.name, use.prompt(), max_tokens=200, stop=[stop])
    assert result.finish_reason == "stop", result
    return check(model, result, stop)


@operation(8)
def stream(use: Use) -> str:
    model = use.model()
    chunks = list(use.backend.stream(model.name, use.prompt(), **use.options()))
    assert [c.finish_reason is not None for c in chunks].count(True) == 1
    text = "".join(chunk.text for chunk in chunks)
    assert model.text is None or begins(model.text, text), (model.name, text)
    return str(chunks[-1].finish_reason)


@operation(8)
def leave_stream(use: Use) -> str:
    model = use.model()
    stream = use.backend.stream(model.name, use.prompt(), **use.options())
    text = ""
    for _, chunk in zip(range(use.dice.randrange(4)), stream, strict=False):
        text += chunk.text
    assert model.text is None or begins(model.text, text), (model.name, text)
    if use.dice.random() < 0.5:
        stream.close()
    elif use.dice.random() < 0.5:
        threading.Thread(target=stream.close).start()
    return "left"


@operation(8, RequestCancelled)
def cancel(use: Use) -> str:
    model = use.model()
    name = f"cancelled-{use.dice.getrandbits(64)}"
    timer = threading.Timer(use.dice.uniform(0, 0.3), use.backend.cancel, [name])
    timer.start()
    try:
        result = use.backend.generate(
            model.name, use.prompt(), max_tokens=200, request_id=name, timeout=60.0
        )
    finally:
        timer.join()
    return check(model, result)


@operation(6, RequestTimeout)
def time_out(use: Use) -> str:
    model = use.model()
    timeout = use.dice.choice((0.0, 0.001, 0.02, 0.2))
    result = use.backend.generate(model.name, use.prompt(), max_tokens=300, timeout=timeout)
    return check(model, result)


@operation(4, RequestTimeout)
def load(use: Use) -> str:
    timeout = use.dice.choice((None, None, 0.001, 0.05))
    model = use.model().name
    info = use.backend.load(model, pin=use.dice.random() < 0.3, timeout=timeout)
    assert info.name == model, info
    return "loaded"


@operation(4, RequestTimeout)
def unload(use: Use) -> str:
    timeout = use.dice.choice((None, None, 0.001))
    return "unloaded" if use.backend.unload(use.model().name, timeout=timeout) else "not there"


@operation(5, RequestTimeout)
def run(use: Use) -> str:
    def work() -> list[float]:
        import mlx.core as mx

        return (mx.arange(4) * 2).tolist()  # type: ignore[return-value]

    timeout = use.dice.choice((None, None, 0.001))
    assert use.backend.run(work, timeout=timeout) == [0, 2, 4, 6]
    return "ran"


@operation(3, Injected)
def run_raising(use: Use) -> str:
    def work() -> None:
        import mlx.core as mx

        array = mx.ones(1000)
        raise Injected(float(array.sum()))

    use.backend.run(work)
    raise AssertionError("nothing was raised")


@operation(2, InvalidRequest)
def run_returning_an_array(use: Use) -> str:
    def work() -> Any:
        import mlx.core as mx

        return {"array": [mx.ones(1000)]}

    use.backend.run(work)
    raise AssertionError("an array left the MLX thread")


@operation(2)
def look(use: Use) -> str:
    used, budget = use.backend.memory()
    # While a load runs, `used` counts it and what it evicts: it may exceed the budget.
    assert used >= 0 and (budget or not used), (used, budget)
    events = use.backend.events()
    for event in events[-3:]:
        if event.request_id is not None:
            assert event.request_id in use.backend.explain(event.request_id)
    use.backend.models()
    return "looked"


def _bad(use: Use) -> list[tuple[type[GuardedLLMError], Callable[[], Any]]]:
    backend, good, broken = use.backend, use.scripted().name, use.broken
    ask = functools.partial(backend.generate, good)
    user = {"role": "user", "content": "Hello"}
    return [
        (InvalidRequest, lambda: ask("")),
        (InvalidRequest, lambda: ask([])),
        (InvalidRequest, lambda: ask([{"role": "nobody", "content": "x"}])),
        (InvalidRequest, lambda: ask([{**user, "content": [{"type": "image_url"}]}])),
        (InvalidRequest, lambda: ask("x", temperature=float("nan"))),
        (InvalidRequest, lambda: ask("x", max_tokens=0)),
        (InvalidRequest, lambda: ask("x", max_tokens=True)),
        (InvalidRequest, lambda: ask("x", wrong=1)),
        (InvalidRequest, lambda: ask("x", timeout=-1.0)),
        (InvalidRequest, lambda: ask("x", logit_bias={10**6: 1.0})),
        (InvalidRequest, lambda: ask("x", stop=[""])),
        (InvalidRequest, lambda: backend.generate("", "x")),
        (InvalidRequest, lambda: backend.load(good, kv_bits=3)),
        (ContextOverflow, lambda: ask("word " * 1000)),
        (ModelNotFound, lambda: backend.generate("no-such-model", "x")),
        (ModelNotFound, lambda: backend.load("no-such-model")),
        (ModelInvalid, lambda: backend.generate(broken["torn"].name, "x")),
        (ModelInvalid, lambda: backend.load(broken["mismatched"].name)),
        (ModelError, lambda: backend.load(broken["empty"].name)),
        (NoChatTemplate, lambda: backend.generate(broken["base"].name, [user])),
        (NonFiniteLogits, lambda: backend.generate(broken["nan"].name, "x", max_tokens=4)),
    ]


@operation(10)
def bad_input(use: Use) -> str:
    kind, call = use.dice.choice(_bad(use))
    try:
        call()
    except kind:
        return kind.__name__
    raise AssertionError(f"{kind.__name__} was expected")


@operation(2)
def sabotage(use: Use) -> str:
    """Make the next step of some batch fail, where the profile says so."""
    if not use.profile.sabotage:
        return "not here"

    def work() -> None:
        engine: Any = use.backend._dispatcher._engine
        for resident in list(engine._residents.values())[:1]:
            resident.decoder.step = _fail

    use.backend.run(work, label="sabotage")
    return "done"


def _fail() -> None:
    raise RuntimeError("[soak] an injected failure of a step")


@operation(10)
async def agenerate(use: Use) -> str:
    model = use.model()
    result = await use.backend.agenerate(model.name, use.prompt(), **use.options())
    return check(model, result)


@operation(5, asyncio.CancelledError)
async def cancelled_task(use: Use) -> str:
    model = use.model()
    task = asyncio.create_task(use.backend.agenerate(model.name, use.prompt(), max_tokens=100))
    await asyncio.sleep(use.dice.uniform(0, 0.2))
    task.cancel()
    return check(model, await task)


@operation(5)
async def astream(use: Use) -> str:
    model = use.model()
    text, reason = "", None
    async for chunk in use.backend.astream(model.name, use.prompt(), **use.options()):
        text, reason = text + chunk.text, chunk.finish_reason
    assert model.text is None or begins(model.text, text), (model.name, text)
    return str(reason)


@operation(5)
async def leave_astream(use: Use) -> str:
    model = use.model()
    chunks = use.backend.astream(model.name, use.prompt(), **use.options())
    left = use.dice.randrange(4)
    async for _ in chunks:
        left -= 1
        if left <= 0:
            break
    if use.dice.random() < 0.5:
        await chunks.aclose()
    return "left"


@operation(3, RequestTimeout)
async def aload(use: Use) -> str:
    timeout = use.dice.choice((None, 0.001))
    await use.backend.aload(use.model().name, timeout=timeout)
    return "loaded"


@operation(2, RequestTimeout)
async def aunload(use: Use) -> str:
    return "unloaded" if await use.backend.aunload(use.model().name) else "not there"


@operation(3, TimeoutError)
async def arun(use: Use) -> str:
    async with asyncio.timeout(use.dice.choice((None, 0.001))):
        await use.backend.arun(lambda: None)
    return "ran"


# ---- the run ------------------------------------------------------------------------------


class Soak:
    """One run. `faults` holds what was off; the first one ends it."""

    def __init__(self, *, seed: int, models: int, folder: Path) -> None:
        self.seed = seed
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self.samples: list[Sample] = []
        self._count = threading.Lock()
        self.models, self.broken, aliases = make_models(folder / "models", models)
        self._catalog = Catalog(aliases_file=aliases, cache_dir=folder / "cache")

    def go(self, seconds: float) -> None:
        """Use two backends at once until the time is over."""
        period = min(60.0, max(5.0, seconds / 6))
        end = time.monotonic() + seconds
        long = Profile("long", {"load_wait": 0.05, "fairness_window": 0.05})
        with self._open(long) as backend:
            self.samples.append(Sample.take(backend))
            print(f"start: {self.samples[0]}", flush=True)
            profiles = self._profiles(backend)
            dice = Random(self.seed)
            while time.monotonic() < end and not self.faults:
                profile = dice.choice(profiles)
                with self._open(profile) as brief:
                    until = min(end, time.monotonic() + period)
                    self._use([(backend, long), (brief, profile)], until, dice.getrandbits(32))
                    for used in (backend, brief):
                        self._check_drained(used)
                    if not brief.close():
                        self.faults.append(f"the backend {profile.name} did not close")
                self._check_sample(backend, profile)
                del brief, used
        if backend._dispatcher.alive:
            self.faults.append("the backend did not close")
        if (left := _active_memory()) > self.samples[0].active + MEMORY_SLACK:
            self.faults.append(f"after close {left} bytes are left in MLX")
        self._check_growth()

    def _open(self, profile: Profile) -> Backend:
        return Backend(
            **{"timeout": 90.0, "record_size": 2000, "catalog": self._catalog, "offline": True}
            | dict(profile.options)
        )

    def _profiles(self, backend: Backend) -> list[Profile]:
        for model in self.models[:2]:
            backend.load(model.name)
        used, _ = backend.memory()
        kept = backend._dispatcher.ready
        assert kept is not None
        tight = int((used - kept.prefix_cache_bytes) * 1.1)
        quick = {"load_wait": 0.02, "fairness_window": 0.02}
        return [
            Profile("tight", {**quick, "memory_budget": tight, "prefix_cache": 0}, (MemoryRefused,)),
            Profile("short queue", {"max_queue": 1, "max_active": 1, **quick}, (QueueFull,)),
            Profile(
                "raising", {**quick, "on_load_deadline": "raise"}, (LoadDeferredTimeout,)
            ),
            Profile("sabotaged", quick, (GenerationFailed,), sabotage=True),
            Profile("patient", {"load_wait": 5.0, "fairness_window": 1.0, "prefix_cache": "64KB"}),
            Profile("forgetful", {**quick, "keep_alive": 0.05, "prefill_step_size": 16}),
        ]

    def _use(self, backends: list[tuple[Backend, Profile]], until: float, seed: int) -> None:
        """Let the workers loose, and see that all of them come back."""

        def use(number: int, backend: Backend, profile: Profile) -> Use:
            return Use(backend, profile, self.models, self.broken, Random(seed + number))

        workers = [
            threading.Thread(
                target=self._work,
                args=(use(n, *backends[min(n // WORKERS, 1)]), until),
                name=f"soak-{n}",
                daemon=True,
            )
            for n in range(WORKERS + 2)
        ]
        tasks = [use(100 + n, *backends[n % 2]) for n in range(TASKS)]
        workers.append(
            threading.Thread(
                target=lambda: asyncio.run(self._work_async(tasks, until)),
                name="soak-asyncio",
                daemon=True,
            )
        )
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()) + END_LIMIT)
            if worker.is_alive():
                faulthandler.dump_traceback(all_threads=True)
                raise SystemExit(f"soak: {worker.name} never came back; seed {self.seed}")

    def _work(self, use: Use, until: float) -> None:
        weights = [weight for weight, _, _ in _operations]
        while time.monotonic() < until and not self.faults:
            _, allows, function = use.dice.choices(_operations, weights)[0]
            with self._judged(function, allows + use.profile.allows) as outcome:
                outcome.append(function(use))

    async def _work_async(self, uses: list[Use], until: float) -> None:
        async def work(use: Use) -> None:
            weights = [weight for weight, _, _ in _async_operations]
            while time.monotonic() < until and not self.faults:
                _, allows, function = use.dice.choices(_async_operations, weights)[0]
                with self._judged(function, allows + use.profile.allows) as outcome:
                    outcome.append(await function(use))

        await asyncio.gather(*(work(use) for use in uses))

    @contextlib.contextmanager
    def _judged(
        self, function: Operation, allows: tuple[type[BaseException], ...]
    ) -> Iterator[list[str]]:
        """Count how an operation ended; what it may not end with is a fault."""
        outcome: list[str] = []
        try:
            yield outcome
        except allows as error:
            outcome.append(type(error).__name__)
        except BaseException as error:
            outcome.append(f"FAULT {type(error).__name__}")
            self.faults.append(f"{function.__name__}: {''.join(traceback.format_exception(error))}")
        with self._count:
            self.outcomes[function.__name__, outcome[0]] += 1

    def _check_drained(self, backend: Backend) -> None:
        """Left streams end on their own; then nothing may be kept of any request."""
        end = time.monotonic() + END_LIMIT
        while left := _left(backend):
            if time.monotonic() > end:
                self.faults.append(f"still under way after {END_LIMIT:.0f} s: {left}")
                return
            time.sleep(0.05)

    def _check_sample(self, backend: Backend, profile: Profile) -> None:
        for info in backend.models():
            backend.unload(info.name)
        sample = Sample.take(backend)
        self.samples.append(sample)
        print(f"{sum(self.outcomes.values())} operations, last {profile.name}: {sample}", flush=True)
        first = self.samples[0]
        if sample.active > first.active + MEMORY_SLACK:
            self.faults.append(f"MLX memory leaks: {first} -> {sample}")
        kept = Counter(
            type(o).__name__
            for o in gc.get_objects()
            if isinstance(o, (Request, Job, Generation, PreparedRequest))
        )
        if kept:
            self.faults.append(f"of ended requests there is left: {dict(kept)}")

    def _check_growth(self) -> None:
        samples = self.samples[1:]  # the first was before any model was loaded
        third = max(1, len(samples) // 3)
        early, late = samples[:third], samples[-third:]
        for name, slack in (("threads", COUNT_SLACK), ("fds", COUNT_SLACK), ("rss", RSS_SLACK)):
            before = statistics.median(getattr(sample, name) for sample in early)
            after = statistics.median(getattr(sample, name) for sample in late)
            if after > before + slack:
                self.faults.append(f"{name} grew from {before:.0f} to {after:.0f}")


def _left(backend: Backend) -> str:
    """What a backend still knows of requests, in words; "" if nothing."""
    dispatcher = backend._dispatcher
    engine: Any = dispatcher._engine
    held: dict[str, Any] = {
        "models": [m.name for m in backend.models() if m.active or m.waiting],
        "requests": dispatcher._requests,
        "puts": dispatcher._puts,
        "jobs": dispatcher._jobs,
        "fetches": dispatcher.library.fetching,
    }
    if engine is not None:
        held |= {"generations": engine._generations, "prepared": engine._preparer._prepared}
    return ", ".join(f"{name}: {list(things)}" for name, things in held.items() if things)


def make_models(folder: Path, count: int) -> tuple[list[Model], dict[str, Model], Path]:
    """Make the models of the run, the broken ones, and the aliases that name them."""
    models, lines = [], []
    for n in range(count):
        name = f"model-{n}"
        if n % 2 == 0:
            text = SCRIPTS[n // 2 % len(SCRIPTS)]
            thinks = n % 4 == 2
            reasoning = "Hm, let me see." if thinks else ""
            script = f"<think>{reasoning}</think>{text}" if thinks else text
            make_scripted_model(folder / name, script, thinking=thinks)
            models.append(Model(name, text, reasoning))
        else:
            architecture = ARCHITECTURES[n // 2 % len(ARCHITECTURES)]
            make_tiny_model(folder / name, architecture=architecture, seed=n, hidden_size=128)
            models.append(Model(name))
        lines.append(f'[{name}]\nmodel = "{folder / name}"\n')
    lines.append(f'[kv-bits]\nmodel = "{folder / "model-1"}"\nkv_bits = 8\nkv_group_size = 32\n')
    models.append(Model("kv-bits"))

    make_tiny_model(folder / "base", chat_template=None)
    make_tiny_model(folder / "nan", nan=True)
    torn = make_tiny_model(folder / "torn") / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1000])
    mismatched = make_tiny_model(folder / "mismatched") / "config.json"
    config = mismatched.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    mismatched.write_text(config)
    (folder / "empty").mkdir()
    broken = {name: Model(name) for name in ("base", "nan", "torn", "mismatched", "empty")}
    lines += [f'[{name}]\nmodel = "{folder / name}"\n' for name in broken]
    aliases = folder / "models.toml"
    aliases.write_text("\n".join(lines))
    return models, broken, aliases


def main() -> int:
    """Run, and say how it went."""
    parser = argparse.ArgumentParser(description="Random use of the library under the witness.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=None, help="of the dice; drawn if not given")
    parser.add_argument("--models", type=int, default=8, help="how many models, 3 at least")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4))
    print(f"soak: {options.minutes:g} minutes, seed {seed}", flush=True)
    os.environ[rail.WITNESS_VARIABLE] = "1"
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(seed=seed, models=max(3, options.models), folder=Path(folder))
        soak.go(options.minutes * 60)
    for (name, outcome), count in sorted(soak.outcomes.items()):
        print(f"  {name:<24} {outcome:<24} {count}")
    seen = getattr(rail.current(), "seen", {})
    print("  the witness saw", ", ".join(f"{count} {kind}s" for kind, count in seen.items()))
    for fault in soak.faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    total = sum(soak.outcomes.values())
    word = f"FAILED, {len(soak.faults)} faults" if soak.faults else "ok"
    print(f"soak: {word}: {total} operations, {len(soak.samples) - 1} periods, seed {seed}")
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
