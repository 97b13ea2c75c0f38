"""Every argument of every call, with values that nobody should pass.

The call itself gets `InvalidRequest`, or a good answer; whoever generates beside it gets the
very answer that it would have had alone, from the same engine.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mlx_guarded_llm import Backend, GuardedLLM, RetryPolicy
from mlx_guarded_llm.errors import GuardedLLMError, InvalidRequest, ModelError, RequestTimeout
from tests.conftest import MakeBackend, MakeModel


class Unhashable(str):
    """What no dictionary takes, and no other process knows."""

    __slots__ = ()

    def __hash__(self) -> int:
        raise ValueError("no hash")

    def __eq__(self, other: object) -> bool:
        raise ValueError("no comparison")


class Local(int):
    """An integer that no other process can read, and that compares as it likes."""

    def __lt__(self, other: int) -> bool:
        raise ValueError("no order")

    __le__ = __gt__ = __ge__ = __lt__


class LocalFloat(float):
    """As `Local`."""

    def __lt__(self, other: float) -> bool:
        raise ValueError("no order")

    __le__ = __gt__ = __ge__ = __lt__


class NoText:
    """What not even an error message can show."""

    def __repr__(self) -> str:
        raise ValueError("no text")

    def __hash__(self) -> int:
        raise ValueError("no hash")


HOSTILE: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    10**30,
    10**5000,
    -(10**30),
    0.5,
    math.nan,
    math.inf,
    -math.inf,
    1e308,
    "",
    "x",
    "\ud800",
    "\0",
    "x" * 2_000,
    b"x",
    [],
    ["x"],
    [None],
    {},
    {"x": 1},
    {1: 2},
    {"a": {"b": [Local(1)]}},
    (),
    set(),
    object(),
    len,
    NoText(),
    Local(3),
    LocalFloat(0.5),
    Unhashable("x"),
    [Unhashable("x")],
    np.int64(3),
    np.float64(0.5),
    np.array([1, 2]),
    range(3),
]
SAMPLING = [
    *("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "penalty_window"),
    *("logit_bias", "logprobs", "top_logprobs", "schema", "regex", "grammar"),
]
PROMPTING = ["raw", "tools", "tool_choice", "parallel_tool_calls", "thinking", "template_kwargs"]
COMMON = ["request_id", "on_progress", "timeout"]
# Another thing may be right to say of these: there is no such model, or its time was up.
ALLOWED = (InvalidRequest, ModelError, RequestTimeout)


class Neighbour:
    """Generates all the time, and compares."""

    def __init__(self, backend: Backend, model: str) -> None:
        self._ask: Callable[[], str] = lambda: (
            backend.generate(model, "Hello", max_tokens=200, seed=1, temperature=1.0, top_k=5).text
        )
        self._alone = self._ask()
        self._over = threading.Event()
        self.wrong: list[Any] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                text = self._ask()
            except GuardedLLMError as error:
                self.wrong.append(error)
                return
            if text != self._alone:
                self.wrong.append(text)

    def end(self) -> None:
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive() and self.wrong == []


@pytest.fixture
def isolation() -> str:
    """What cannot be read in another process is half of the matter."""
    return "process"


@pytest.fixture
def beside(backend: Backend, tiny: MakeModel) -> Iterator[Neighbour]:
    neighbour = Neighbour(backend, tiny())
    pid = backend.worker_pid
    yield neighbour
    neighbour.end()
    assert backend.worker_pid == pid
    assert backend.generate(tiny(), "Hello", max_tokens=2).text is not None


def harmless(call: Callable[[], Any], what: str) -> None:
    """It answers, or says what is wrong with the call."""
    try:
        call()
    except ALLOWED:
        pass
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


@pytest.mark.usefixtures("beside")
def test_options_of_generate(backend: Backend, tiny: MakeModel) -> None:
    usual: dict[str, Any] = {"max_tokens": 2, "temperature": 1.0, "timeout": 20.0}
    for option in [*SAMPLING, *PROMPTING, *COMMON]:
        for n, value in enumerate(HOSTILE):
            options = usual | {option: value}
            harmless(lambda o=options: backend.generate(tiny(), "Hi", **o), f"{option}, value {n}")  # type: ignore[misc]


@pytest.mark.usefixtures("beside")
def test_prompts(backend: Backend, tiny: MakeModel) -> None:
    messages = [[{"role": "user", "content": value}] for value in HOSTILE]
    parts = [[{"role": value, "content": "Hi", "more": value}] for value in HOSTILE]
    for n, prompt in enumerate([*HOSTILE, *messages, *parts]):
        harmless(
            lambda p=prompt: backend.generate(tiny(), p, max_tokens=2, timeout=20),  # type: ignore[misc]
            f"prompt {n}",
        )
        harmless(lambda p=prompt: backend.tokens(tiny(), p, timeout=20), f"tokens {n}")  # type: ignore[misc]


@pytest.mark.usefixtures("beside")
def test_calls_that_generate_nothing(
    backend: Backend, tiny: MakeModel, embedder: MakeModel
) -> None:
    calls: dict[str, Callable[[Any], Any]] = {
        "cancel": backend.cancel,
        "explain": backend.explain,
        "forgive": backend.forgive,
        "model": lambda v: backend.generate(v, "Hi", max_tokens=2, timeout=20),
        "texts": lambda v: backend.embed(embedder(), v, timeout=20),
        "text": lambda v: backend.embed(embedder(), [v], timeout=20),
        "truncate": lambda v: backend.embed(embedder(), ["Hi"], truncate=v, timeout=20),
        "embed's request_id": lambda v: backend.embed(embedder(), ["Hi"], request_id=v),
        "load's model": lambda v: backend.load(v, timeout=20),
        "pin": lambda v: backend.load(tiny(), pin=v, timeout=20),
        "load's timeout": lambda v: backend.load(tiny(), timeout=v),
        "load's on_progress": lambda v: backend.load(tiny(), on_progress=v, timeout=20),
        "unload's model": lambda v: backend.unload(v, timeout=20),
        "label": lambda v: backend.run(_one, label=v, timeout=20),
        "fn": lambda v: backend.run(v, timeout=20),
    }
    for what, call in calls.items():
        for n, value in enumerate(HOSTILE):
            if (what, value is len) == ("fn", True):
                continue  # a function, which may raise what it likes
            harmless(lambda c=call, v=value: c(v), f"{what}, value {n}")  # type: ignore[misc]


def test_options_of_the_backend_itself(make_backend: MakeBackend) -> None:
    options = [
        *("load_wait", "fairness_window", "on_load_deadline", "memory_budget", "keep_alive"),
        *("max_queue", "max_active", "timeout", "prefix_cache", "prefill_step_size", "offline"),
        *("on_progress", "record_size", "stall_timeout", "quarantine_after", "spare_worker"),
        "isolation",
    ]
    for option in options:
        for n, value in enumerate(HOSTILE):
            harmless(lambda o={option: value}: make_backend(**o), f"{option}, value {n}")  # type: ignore[misc]


@pytest.mark.parametrize("seconds", [0, 0.3, 1.9])
def test_a_stall_timeout_that_no_engine_could_keep(
    make_backend: MakeBackend, seconds: float
) -> None:
    with pytest.raises(InvalidRequest, match="2 or more"):
        make_backend(stall_timeout=seconds)


@pytest.mark.usefixtures("beside")
def test_options_of_guarded_models(backend: Backend, tiny: MakeModel) -> None:
    policy = ["attempts", "deadline", "attempt_timeout", "initial_wait", "max_wait", "jitter"]
    guarded = ["retry", "on_fallback", "on_degraded", "accept", "hold_back", "constrain"]
    for n, value in enumerate(HOSTILE):
        for option in [*policy, "max_tokens_cap"]:
            harmless(lambda o={option: value}: RetryPolicy(**o), f"{option}, value {n}")  # type: ignore[misc]
        for option in [*guarded, "fallbacks", "model", *SAMPLING[:7]]:
            arguments = {"model": tiny()} | {option: value}
            harmless(lambda a=arguments: GuardedLLM(backend, **a), f"{option}, value {n}")  # type: ignore[misc]


def _one() -> int:
    return 1
