"""What the soak does: its models, and one function for each thing that a caller may do."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import (
    ContextOverflow,
    GuardedLLMError,
    InvalidRequest,
    ModelError,
    ModelInvalid,
    ModelNotFound,
    NoChatTemplate,
    NonFiniteLogits,
    RequestCancelled,
    RequestTimeout,
)
from mlx_guarded_llm.results import Result
from mlx_guarded_llm.testing.tiny import make_scripted_model, make_tiny_model
from tests.soak.inspect_engine import break_a_step, in_engine

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
    make_tiny_model(folder / "small", seed=99)
    for name, draft in (("looked-up", "prompt"), ("drafted", folder / "small")):
        lines.append(f'[{name}]\nmodel = "{folder / "model-1"}"\ndraft = "{draft}"\n')
        models.append(Model(name))

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


Operation = Callable[["Use"], Any]
OPERATIONS: list[tuple[int, tuple[type[BaseException], ...], Operation]] = []
ASYNC_OPERATIONS: list[tuple[int, tuple[type[BaseException], ...], Operation]] = []


def operation(weight: int, *allows: type[BaseException]) -> Callable[[Operation], Operation]:
    """An operation, how often it is chosen, and the errors that it may end with."""

    def add(function: Operation) -> Operation:
        kind = ASYNC_OPERATIONS if asyncio.iscoroutinefunction(function) else OPERATIONS
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
    in_engine(use.backend, break_a_step, label="sabotage")
    return "done"


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
