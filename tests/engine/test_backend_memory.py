"""What fits is kept, what does not is refused with numbers, and memory comes back."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend, Catalog
from mlx_guarded_llm.backend.programs import Answer, Claim, Programs
from mlx_guarded_llm.errors import MemoryRefused
from mlx_guarded_llm.memory import budget
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import active_memory, events, text_of, wait_for, wait_until


@pytest.fixture(scope="module")
def least(tiny: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> int:
    """The least budget for one tiny model and a short request, as refusals tell it.

    Looked for on a thread: each budget takes another engine. It is the same everywhere.
    """
    catalog = Catalog(cache_dir=tmp_path_factory.mktemp("least"))
    budget = 1
    while True:
        with Backend(
            isolation="thread", catalog=catalog, prefix_cache=0, memory_budget=budget
        ) as backend:
            try:
                backend.generate(tiny(), "Hello", max_tokens=8)
            except MemoryRefused as error:
                budget = error.needed_bytes
            else:
                return budget


@pytest.fixture
def cramped(make_backend: MakeBackend, least: int) -> Backend:
    """A backend with room for one tiny model."""
    return make_backend(prefix_cache=0, memory_budget=least + 256 * 1024)


@pytest.fixture
def room_for_two(make_backend: MakeBackend, cramped: Backend, tiny: MakeModel) -> Backend:
    weights = cramped.load(tiny()).memory_bytes
    return make_backend(prefix_cache=0, memory_budget=cramped.memory()[1] + weights)


def names(backend: Backend) -> list[str]:
    return [info.name for info in backend.models()]


def test_the_least_recently_used_leaves(room_for_two: Backend, tiny: MakeModel) -> None:
    a, b, c = (tiny(seed=seed) for seed in range(3))
    for model in (a, b, a, c):
        room_for_two.generate(model, "Hello", max_tokens=4)
    assert sorted(names(room_for_two)) == sorted([a, c])
    (load,) = events(room_for_two, "load.started", model=c)
    assert load.details["evict"] == [b]
    used, budget = room_for_two.memory()
    assert 0 < used <= budget


def test_the_answer_is_the_same_after_eviction(cramped: Backend, tiny: MakeModel) -> None:
    a, b = tiny(seed=1), tiny(seed=2)
    texts = [cramped.generate(model, "Hello", max_tokens=8).text for model in (a, b) * 2]
    assert texts[:2] == texts[2:] and texts[0] != texts[1]
    assert len(events(cramped, "load.finished")) == 4


def test_a_busy_model_is_not_evicted(cramped: Backend, tiny: MakeModel) -> None:
    a, b = tiny(seed=1), tiny(seed=2)
    stream = cramped.stream(a, "Hello", max_tokens=60)
    next(stream)
    cramped.generate(b, "Hello", max_tokens=4)
    end = wait_for(cramped, "request.finished", request_id=stream.request_id)
    (began,) = events(cramped, "load.started", model=b)
    assert end.time <= began.time and began.details["evict"] == [a]
    assert end.details["completion_tokens"] == 60 and text_of(stream)


def test_a_pinned_model_is_never_evicted(cramped: Backend, tiny: MakeModel) -> None:
    a, b = tiny(seed=1), tiny(seed=2)
    assert cramped.load(a, pin=True).pinned
    with pytest.raises(MemoryRefused) as caught:
        cramped.generate(b, "Hello", max_tokens=4)
    error = caught.value
    assert error.needed_bytes > error.budget_bytes > 0
    assert "GiB" in str(error) and a in str(error) and error.hint and error.fallback
    assert events(cramped, "load.started", model=b) == []
    assert cramped.generate(a, "Hello", max_tokens=4).text
    assert cramped.unload(a)
    assert cramped.generate(b, "Hello", max_tokens=4).text


@pytest.mark.parametrize("ask", ["load", "generate"])
def test_refused_before_a_byte_is_read(
    make_backend: MakeBackend, tiny: MakeModel, ask: str
) -> None:
    backend = make_backend(prefix_cache=0, memory_budget=100_000)
    with pytest.raises(MemoryRefused) as caught:
        backend.load(tiny()) if ask == "load" else backend.generate(tiny(), "Hello", max_tokens=4)
    assert caught.value.needed_bytes > caught.value.budget_bytes == 100_000
    assert caught.value.hint
    assert events(backend, "load.") == []


def test_too_long_an_answer_is_refused(cramped: Backend, tiny: MakeModel) -> None:
    long = tiny(context_window=1_000_000)
    with pytest.raises(MemoryRefused) as caught:
        cramped.generate(long, "Hello", max_tokens=900_000)
    assert caught.value.needed_bytes > caught.value.budget_bytes
    assert "tokens" in str(caught.value)
    assert events(cramped, "load.") == []
    assert cramped.generate(long, "Hello", max_tokens=4).text


def test_requests_beyond_the_budget_wait(
    make_backend: MakeBackend, tiny: MakeModel, least: int
) -> None:
    """Each fits alone, not all together: they take turns and none is refused."""
    backend = make_backend(prefix_cache=0, memory_budget=least + 400_000)
    streams = [backend.stream(tiny(), f"Hello {n}", max_tokens=30) for n in range(8)]
    assert all(list(stream)[-1].finish_reason == "length" for stream in streams)
    used, budget = backend.memory()
    assert used <= budget


@pytest.mark.parametrize("budget", ["100MiB", 100 * 1024**2])
def test_a_small_budget_has_a_small_prefix_cache(
    make_backend: MakeBackend, tiny: MakeModel, budget: Any
) -> None:
    """The default share is of the budget there is, not of the machine."""
    backend = make_backend(memory_budget=budget, prefix_cache=None)
    assert backend.generate(tiny(), "Hello", max_tokens=4).text
    assert backend.memory()[1] == 100 * 1024**2


def test_keep_alive(make_backend: MakeBackend, tiny: MakeModel) -> None:
    a, b = tiny(seed=1), tiny(seed=2)
    backend = make_backend(keep_alive=0.2)
    backend.load(b, pin=True)
    backend.generate(a, "Hello", max_tokens=4)
    (end,) = events(backend, "request.finished")
    gone = wait_for(backend, "unload.finished", model=a)
    (queued,) = events(backend, "unload.queued")
    assert queued.cause == "keep_alive" and queued.time - end.time >= 0.2
    assert gone.details["freed"] > 0
    assert names(backend) == [b], "pinned"
    assert backend.generate(a, "Hello", max_tokens=4).text


def test_unloading_gives_memory_back(backend: Backend, tiny: MakeModel) -> None:
    backend.load(tiny(seed=9))
    before = backend.run(active_memory)
    for architecture in ("llama", "gemma2", "mamba"):
        model = tiny(architecture=architecture, hidden_size=128, layers=4)
        backend.generate(model, "Hello", max_tokens=8)
        (loaded,) = events(backend, "load.finished", model=model)
        held = backend.run(active_memory)
        assert held >= before + loaded.details["bytes"] > before
        assert backend.unload(model)
        # A few constants of the layers' code stay for good.
        assert backend.run(active_memory) <= before + 1024
        (left,) = events(backend, "unload.finished", model=model)
        assert left.details["freed"] >= loaded.details["bytes"] - 1024


@pytest.mark.parametrize("isolation", ["thread"])  # a process takes its memory along
def test_closing_gives_memory_back(make_backend: MakeBackend, tiny: MakeModel) -> None:
    watcher = make_backend()
    before = watcher.run(active_memory)
    backend = make_backend()
    stream = backend.stream(tiny(), "Hello", max_tokens=1500)
    next(stream)
    backend.load(tiny(seed=5))
    assert watcher.run(active_memory) > before
    assert backend.close()
    assert watcher.run(active_memory) == before


def test_a_failed_load_gives_memory_back(backend: Backend, tiny: MakeModel, tmp_path: Path) -> None:
    before = backend.run(active_memory)
    folder = Path(shutil.copytree(tiny(), tmp_path / "model"))
    config = folder / "config.json"
    settings = json.loads(config.read_text())
    settings["intermediate_size"] *= 2  # verification passes, and MLX refuses the weights
    config.write_text(json.dumps(settings))
    with pytest.raises(Exception, match="do not fit"):
        backend.load(str(folder))
    assert backend.run(active_memory) == before
    used, _ = backend.memory()
    assert used == 64 * 1024**2, "only the prefix cache is promised"
    assert names(backend) == []


def test_many_loads_leak_nothing(backend: Backend, tiny: MakeModel) -> None:
    before = backend.run(active_memory)
    for _ in range(5):
        backend.generate(tiny(), "Hello", max_tokens=4)
        backend.unload(tiny())
    wait_until(lambda: not backend.models())
    assert backend.run(active_memory) == before


@pytest.fixture
def other() -> Iterator[Programs]:
    """Another program: its entry has a file and a lock of its own."""
    program = Programs()
    yield program
    program.release(0)
    assert program.flush(60)


def hold(program: Programs, size: int) -> None:
    told: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
    claim = Claim(device="cpu", bytes=size, models={"theirs": size})
    assert program.claim(0, claim, 2**40, told.put)
    answer = told.get(timeout=60)
    assert answer is not None and answer.granted == size


def test_what_another_program_holds(
    cramped: Backend, other: Programs, tiny: MakeModel, least: int
) -> None:
    hold(other, least // 2)
    for ask in (cramped.load, partial(cramped.generate, prompt="Hello", max_tokens=8)):
        with pytest.raises(MemoryRefused) as caught:
            ask(tiny())
        error = caught.value
        assert error.held_by == cramped.health().held_by
        ((program, pid, models, size),) = error.held_by
        assert (pid, models, size) == (os.getpid(), ("theirs",), least // 2)
        assert error.needed_bytes <= error.budget_bytes and program in error.hint
    other.release(0)
    assert other.flush(60)
    assert cramped.generate(tiny(), "Hello", max_tokens=8).text
    assert cramped.load(tiny()).state == "resident"
    assert cramped.health().held_by == ()


def test_idle_models_leave_before_another_program_is_blamed(
    room_for_two: Backend, other: Programs, tiny: MakeModel
) -> None:
    a, b = tiny(), tiny(seed=1)
    room_for_two.generate(a, "Hello", max_tokens=4)
    hold(other, room_for_two.models()[0].memory_bytes)
    room_for_two.generate(b, "Hello", max_tokens=4)
    assert names(room_for_two) == [b]


@pytest.mark.parametrize("isolation", ["process"])
@pytest.mark.parametrize("own_worker", [True])
def test_a_dead_engines_memory_is_nobody_elses(
    cramped: Backend, other: Programs, tiny: MakeModel
) -> None:
    cramped.load(tiny(), pin=True)
    used, whole = cramped.memory()
    wait_until(lambda: sum(holder.bytes for _, holder in other.others()) >= used)
    assert cramped.worker_pid is not None
    os.kill(cramped.worker_pid, signal.SIGKILL)
    wait_for(cramped, "engine.died")
    told: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
    assert other.claim(0, Claim(device="cpu", bytes=whole, models={}), whole, told.put)
    answer = told.get(timeout=60)
    assert answer is not None and answer.granted <= whole - used
    wait_until(lambda: len(events(cramped, "load.finished")) == 2)
    assert names(cramped) == [tiny()]


@pytest.mark.parametrize("isolation", ["thread"])
def test_a_server_names_nobody(
    make_backend: MakeBackend, other: Programs, tiny: MakeModel, least: int
) -> None:
    hold(other, least)
    backend = make_backend(prefix_cache=0, memory_budget=least, name_others=False)
    with pytest.raises(MemoryRefused, match="other programs hold") as caught:
        backend.generate(tiny(), "Hello", max_tokens=8)
    assert caught.value.held_by == () and "theirs" not in str(caught.value)
    assert not any("theirs" in str(event) for event in backend.events())
    assert backend.health().held_by


@pytest.mark.parametrize("isolation", ["thread"])
def test_the_budget_of_free_memory_lacks_what_others_hold_once(
    make_backend: MakeBackend, other: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "available_ram", lambda: 10_000_000)
    hold(other, 2_000_000)
    backend = make_backend(memory_budget=None, prefix_cache=0)
    backend.run(int)
    assert backend.memory() == (0, 7_200_000)
