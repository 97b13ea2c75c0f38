"""What one caller brings to be prepared ends for that caller alone, and in time."""

from __future__ import annotations

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.embed_request import MAX_CHARACTERS
from mlx_guarded_llm.errors import (
    ContextOverflow,
    InvalidRequest,
    PreparingFailed,
    QueueFull,
    RequestTimeout,
)
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events, wait_until

LOOP = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i * j %}"
    "{% endfor %}{% endfor %}x"
)
STUCK = "{{ '%s' % (7 ** (7 ** 9)) }}"  # one operation of C, which keeps Python from running


@pytest.fixture
def own_worker() -> bool:
    """Each has limits of its own."""
    return True


def test_a_template_that_loops(make_backend: MakeBackend, tiny: MakeModel) -> None:
    backend, loops = make_backend(stall_timeout=2), tiny(chat_template=LOOP)
    alone = backend.generate(tiny(), "Hello", max_tokens=4).text
    pid = backend.worker_pid
    with ThreadPoolExecutor() as pool:
        for call in (backend.generate, backend.tokens):
            doomed = pool.submit(call, loops, "Hello")
            assert backend.generate(tiny(), "Hello", max_tokens=4).text == alone, "beside it"
            with pytest.raises(PreparingFailed, match="longer than 2 s"):
                doomed.result(60)
    with pytest.raises(RequestTimeout):
        backend.generate(loops, "Hello", timeout=0.3)
    assert backend.generate(tiny(), "Hello", max_tokens=4).text == alone
    assert backend.worker_pid == pid and events(backend, "engine.died") == []


@pytest.mark.parametrize("isolation", ["process"])
def test_one_that_python_cannot_stop_costs_one_engine(
    make_backend: MakeBackend, tiny: MakeModel
) -> None:
    backend, stuck = make_backend(stall_timeout=2), tiny(chat_template=STUCK)
    alone = backend.generate(tiny(), "Hello", max_tokens=400, seed=1).text
    with pytest.raises(PreparingFailed, match="being prepared"):
        backend.generate(stuck, "Hello", max_tokens=2)
    (death,) = events(backend, "engine.died")
    assert (death.details["how"], death.details["work"], death.model) == ("hung", "prepare", stuck)
    assert backend.generate(tiny(), "Hello", max_tokens=400, seed=1).text == alone


def test_what_no_window_could_hold_is_refused_unread(backend: Backend, tiny: MakeModel) -> None:
    backend.load(tiny())
    text = "The quick brown fox. " * 100_000
    for prompt in (text, [{"role": "user", "content": text}]):
        with pytest.raises(ContextOverflow, match=r"21000\d\d characters") as caught:
            backend.generate(tiny(), prompt)
        assert caught.value.context_window and caught.value.hint


def test_characters_under_way_are_bounded(
    backend: Backend, scripted: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = scripted("slow " * 200)
    with pytest.raises(InvalidRequest, match=str(MAX_CHARACTERS)):
        backend.tokens(model, "x" * (MAX_CHARACTERS + 1))
    monkeypatch.setattr("mlx_guarded_llm.backend.pending.MAX_CHARACTERS", 1500)
    stream = backend.stream(model, "x" * 1000)
    next(stream)
    with pytest.raises(QueueFull, match="1500"):
        backend.generate(model, "x" * 1000)
    stream.close()
    wait_until(lambda: not any(info.active for info in backend.models()))
    assert backend.generate(model, "x" * 1000).text


def test_a_long_prompt_beside_short_ones(backend: Backend, tiny: MakeModel) -> None:
    """They are of one model: both tokenizers give the same ids."""
    text = "The quick brown fox. " * 6000
    ids = backend.tokens(tiny(), text, raw=True)
    assert len(ids) > 2048 and backend.tokens(tiny(), text[:21], raw=True)[:3] == ids[:3]


def test_a_tokenizer_that_panics(backend: Backend, tiny: MakeModel, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny(), folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    slow = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    content["pre_tokenizer"] = {**slow, "invert": False}  # Oniguruma gives up, and Rust panics
    file.write_text(json.dumps(content))
    backend.load(tiny())
    pid = backend.worker_pid
    with pytest.raises(PreparingFailed, match="cannot be prepared"):
        backend.generate(str(folder), "a" * 40 + "b", max_tokens=2)
    assert backend.generate(str(folder), "b", max_tokens=2).usage.completion_tokens == 2
    assert backend.worker_pid == pid and events(backend, "engine.died") == []


@pytest.mark.parametrize("isolation", ["process"])
def test_what_ends_engines_while_it_is_prepared_is_not_prepared_for_ever(
    make_backend: MakeBackend, tiny: MakeModel
) -> None:
    backend, loops = make_backend(quarantine_after=None), tiny(chat_template=LOOP)
    alone = backend.generate(tiny(), "Hello", max_tokens=400, seed=1).text
    with ThreadPoolExecutor() as pool:
        doomed = pool.submit(backend.generate, loops, "Hello", max_tokens=2)
        for death in (1, 2):
            wait_until(lambda: _is_preparing(backend, loops))
            pid = backend.worker_pid
            assert pid is not None
            os.kill(pid, signal.SIGABRT)
            wait_until(lambda n=death: len(events(backend, "engine.died")) == n)  # type: ignore[misc]
        with pytest.raises(PreparingFailed, match="2 engines"):
            doomed.result(60)
    assert backend.generate(tiny(), "Hello", max_tokens=400, seed=1).text == alone
    assert {e.details["work"] for e in events(backend, "engine.died")} == {"prepare"}


def _is_preparing(backend: Backend, model: str) -> bool:
    host: Any = backend._dispatcher.supervisor.engine
    process = host and host._process
    if not process or not process.alive or process.status is None:
        return False
    return any(request.model == model for request in process.status.read().preparing)
