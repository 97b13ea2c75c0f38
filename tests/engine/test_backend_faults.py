"""Faults injected below the public face. Not part of the contract: it reaches into the engine.

Each test breaks one thing on the thread that does it, and asks who was told what, who
was unharmed, and whether the backend works afterwards.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.backend.dispatcher import Dispatcher
from mlx_guarded_llm.backend.streams import Mailbox
from mlx_guarded_llm.engine.decode.batch import ContinuousBatch
from mlx_guarded_llm.engine.output.generation import Generation
from mlx_guarded_llm.engine.output.pipeline import TextPipeline
from mlx_guarded_llm.engine.prompt.prepare import Preparer
from mlx_guarded_llm.engine.residency.residents import Residency
from mlx_guarded_llm.errors import (
    EngineDied,
    GenerationFailed,
    GuardedLLMError,
    LoadFailed,
    MemoryRefused,
    ModelQuarantined,
)
from mlx_guarded_llm.results import Chunk
from mlx_guarded_llm.worker.parent.death import Death
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import active_memory, events, text_of, wait_for, wait_until

LONG = 1500


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What breaks here is logged with its traceback; that is wanted, but not shown."""
    with caplog.at_level(logging.CRITICAL, "mlx_guarded_llm"):
        yield


@pytest.fixture
def isolation() -> str:
    """The faults are planted in this process."""
    return "thread"


class Fault:
    """Replaces a method by one that raises while `armed`."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: BaseException
    ) -> None:
        original = getattr(owner, name)
        self.armed = False
        self.only: Any = None

        def method(this: Any, *args: Any, **kwargs: Any) -> Any:
            if self.armed and self.only in (None, this):
                raise type(error)(*error.args)  # a new one: it will hold our frames
            return original(this, *args, **kwargs)

        monkeypatch.setattr(owner, name, method)

    def __enter__(self) -> Fault:
        self.armed = True
        return self

    def __exit__(self, *_: object) -> None:
        self.armed = False


def engine_of(backend: Backend) -> Any:
    return backend._dispatcher.supervisor.engine


def decoder_of(backend: Backend, model: str) -> Any:
    return engine_of(backend)._residents[model].decoder


class TestABatchThatRaises:
    def test_all_in_it_fail_and_nobody_else(
        self, backend: Backend, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a, b = tiny(seed=1), tiny(seed=2)
        fault = Fault(monkeypatch, ContinuousBatch, "step", RuntimeError("[matmul] no"))
        alone = backend.generate(b, "Hello", max_tokens=60).text
        before = backend.generate(a, "Hello", max_tokens=4)
        others = backend.stream(b, "Hello", max_tokens=60)
        doomed = [backend.stream(a, f"Hello {n}", max_tokens=LONG) for n in range(3)]
        for stream in (others, *doomed):
            next(stream)
        fault.only = decoder_of(backend, a)
        with fault:
            for stream in doomed:
                with pytest.raises(GenerationFailed, match="matmul") as caught:
                    list(stream)
                assert caught.value.hint and caught.value.retryable
            (left,) = {info.active for info in backend.models() if info.name == a}
            assert left == 0
            again = backend.generate(a, "Hello", max_tokens=4)  # in the new batch
        assert again.text == before.text
        assert alone.endswith(text_of(others))
        assert len(events(backend, "load.finished")) == 2, "the model stayed"

    def test_its_memory_comes_back(
        self, backend: Backend, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fault = Fault(monkeypatch, ContinuousBatch, "step", RuntimeError("no"))
        backend.load(tiny())
        before = backend.run(active_memory)
        for _ in range(3):
            stream = backend.stream(tiny(), "Hello " * 50, max_tokens=LONG)
            next(stream)
            with fault, pytest.raises(GenerationFailed):
                list(stream)
        assert backend.run(active_memory) <= before + 4096
        backend.unload(tiny())
        (left,) = events(backend, "unload.finished")
        assert left.details["freed"] > 0

    def test_an_insert_that_raises(
        self, backend: Backend, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fault = Fault(monkeypatch, ContinuousBatch, "insert", ValueError("no room"))
        alone = backend.generate(tiny(), "Hello", max_tokens=60).text
        stream = backend.stream(tiny(), "Hello", max_tokens=60)
        text = next(stream).text
        with fault, pytest.raises(GenerationFailed, match="no room"):
            backend.generate(tiny(), "Hello", max_tokens=4)
        assert text + text_of(stream) == alone, "the batch it did not join is unharmed"

    def test_a_removal_that_raises(
        self, backend: Backend, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fault = Fault(monkeypatch, ContinuousBatch, "remove", ValueError("not there"))
        leaver, stayer = (backend.stream(tiny(), "Hello", max_tokens=LONG) for _ in range(2))
        for stream in (leaver, stayer):
            next(stream)
        with fault:
            backend.cancel(leaver.request_id)
            with pytest.raises(GenerationFailed):
                list(stayer)
        assert list(leaver)[-1].finish_reason == "cancelled"
        assert backend.generate(tiny(), "Hello", max_tokens=4).text

    def test_text_that_cannot_be_read(
        self, backend: Backend, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        backend.load(tiny())
        alone = backend.generate(tiny(), "Hello", max_tokens=60).text
        feed = TextPipeline.feed

        def broken(self: TextPipeline, token: int) -> Any:
            if "broken" in self._stops._stops:
                raise UnicodeError("no text")
            return feed(self, token)

        monkeypatch.setattr(TextPipeline, "feed", broken)
        stream = backend.stream(tiny(), "Hello", max_tokens=60)
        with pytest.raises(GenerationFailed, match="no text"):
            backend.generate(tiny(), "Hello", max_tokens=60, stop=["broken"])
        assert text_of(stream) == alone

    def test_an_end_that_cannot_be_read(
        self, backend: Backend, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fault = Fault(monkeypatch, TextPipeline, "finish", UnicodeError("no end"))
        backend.load(tiny())
        with fault, pytest.raises(GenerationFailed, match="no end"):
            backend.generate(tiny(), "Hello", max_tokens=4)
        with fault:
            stream = backend.stream(tiny(), "Hello", max_tokens=LONG)
            next(stream)
            backend.cancel(stream.request_id)
            with pytest.raises(GuardedLLMError):
                list(stream)
        assert backend.generate(tiny(), "Hello", max_tokens=4).text

    def test_a_listener_that_raises(
        self, backend: Backend, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        alone = backend.generate(tiny(), "Hello", max_tokens=40).text
        put = Mailbox.put
        broken: list[Any] = []

        def raising(self: Mailbox, item: Any) -> None:
            if self in broken and isinstance(item, Chunk):
                raise OSError("nobody listens")
            put(self, item)

        monkeypatch.setattr(Mailbox, "put", raising)
        doomed, stream = (backend.stream(tiny(), "Hello", max_tokens=40) for _ in range(2))
        broken.append(doomed.mail)
        with pytest.raises(GenerationFailed, match="nobody listens"):
            list(doomed)
        assert text_of(stream) == alone

    def test_a_listener_that_raises_at_the_end(
        self, backend: Backend, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put = Mailbox.put

        def raising(self: Mailbox, item: Any) -> None:
            put(self, item)
            if isinstance(item, Chunk) and item.finish_reason:
                raise OSError("nobody listens")

        monkeypatch.setattr(Mailbox, "put", raising)
        assert list(backend.stream(tiny(), "Hello", max_tokens=4))[-1].usage
        assert backend.generate(tiny(), "Hello", max_tokens=4).text
        assert events(backend, "engine.failed") == []


class TestLoads:
    @pytest.mark.parametrize(
        ("raised", "told"),
        [
            (RuntimeError("[metal] something"), LoadFailed),
            (RuntimeError("Unable to allocate 5 bytes"), MemoryRefused),
        ],
    )
    def test_one_that_raises(
        self,
        backend: Backend,
        tiny: MakeModel,
        monkeypatch: pytest.MonkeyPatch,
        raised: Exception,
        told: type[GuardedLLMError],
    ) -> None:
        def load_model(*args: Any, **kwargs: Any) -> Any:
            raise raised

        alone = backend.generate(tiny(), "Hello", max_tokens=30).text
        stream = backend.stream(tiny(), "Hello", max_tokens=30)
        with monkeypatch.context() as patch:
            patch.setattr("mlx_guarded_llm.engine.residency.loading.load_model", load_model)
            with pytest.raises(told):
                backend.load(tiny(seed=2))
        assert text_of(stream) == alone
        assert backend.generate(tiny(seed=2), "Hello", max_tokens=4).text

    def test_progress_that_raises(self, backend: Backend, tiny: MakeModel) -> None:
        def broken(step: Any) -> None:
            raise ZeroDivisionError

        assert backend.load(tiny(), on_progress=broken).state == "resident"


class TestTheEngineDies:
    """Everybody is told, later calls fail at once, and it closes all the same."""

    def check(self, backend: Backend, tiny: MakeModel, streams: list[Any]) -> None:
        for stream in streams:
            with pytest.raises(EngineDied):
                list(stream)
        wait_for(backend, "engine.failed")
        for _ in range(2):
            with pytest.raises(EngineDied):
                backend.generate(tiny(), "Hello", max_tokens=4)
            with pytest.raises(EngineDied):
                backend.load(tiny())
            with pytest.raises(EngineDied):
                backend.run(lambda: 1)
        assert backend.models() == []
        assert backend.close()

    def streams(self, backend: Backend, tiny: MakeModel) -> list[Any]:
        """One that runs, one that waits for it, one whose model waits."""
        running = backend.stream(tiny(), "Hello", max_tokens=LONG)
        next(running)
        others = [backend.stream(tiny(seed=s), "Hello", max_tokens=4) for s in (0, 2)]
        wait_for(backend, "load.deferred")
        wait_until(lambda: len(events(backend, "request.queued")) == 3)
        return [running, *others]

    def test_an_error_that_condemns_the_process(
        self, make_backend: MakeBackend, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        error = RuntimeError("[METAL] Command buffer execution failed: (0000000e)")
        fault = Fault(monkeypatch, ContinuousBatch, "step", error)
        backend = make_backend(max_active=1)
        streams = self.streams(backend, tiny)
        with fault:
            with pytest.raises(EngineDied, match="ommand buffer"):
                list(streams.pop(0))
            self.check(backend, tiny, streams)

    @pytest.mark.parametrize("error", [TypeError("a bug of ours"), SystemExit("not at all")])
    def test_an_error_in_its_own_steps(
        self,
        make_backend: MakeBackend,
        tiny: MakeModel,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
    ) -> None:
        fault = Fault(monkeypatch, Generation, "take", error)
        backend = make_backend(max_active=1)
        streams = self.streams(backend, tiny)
        with fault:
            self.check(backend, tiny, streams)

    @pytest.mark.parametrize("error", [RuntimeError("no device"), SystemExit("not at all")])
    def test_an_error_in_a_command(
        self,
        make_backend: MakeBackend,
        tiny: MakeModel,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
    ) -> None:
        fault = Fault(monkeypatch, Residency, "synchronize", error)
        backend = make_backend(max_active=1, load_wait=0.2)
        with fault:
            with pytest.raises(EngineDied):
                backend.load(tiny())
            self.check(backend, tiny, [])

    @pytest.mark.parametrize("error", [ImportError("no libmlx"), SystemExit("no libmlx")])
    def test_mlx_that_cannot_be_used(
        self,
        make_backend: MakeBackend,
        tiny: MakeModel,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
    ) -> None:
        fault = Fault(monkeypatch, Residency, "__init__", error)
        backend = make_backend()
        with fault:
            streams = [backend.stream(tiny(), "Hello") for _ in range(3)]
            for stream in streams:
                with pytest.raises(EngineDied, match="no libmlx") as caught:
                    list(stream)
                assert caught.value.hint
            self.check(backend, tiny, [])

    def test_another_backend_goes_on(
        self, make_backend: MakeBackend, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        doomed, other = make_backend(), make_backend()
        alone = other.generate(tiny(), "Hello", max_tokens=60).text
        stream = other.stream(tiny(), "Hello", max_tokens=60)
        text = next(stream).text
        fault = Fault(monkeypatch, Dispatcher, "_prepared", KeyError("a bug of ours"))
        fault.only = doomed._dispatcher
        with fault, pytest.raises(EngineDied):
            doomed.generate(tiny(), "Hello", max_tokens=4)
        assert text + text_of(stream) == alone


class TestTheDispatcherFails:
    @pytest.mark.parametrize(
        ("owner", "method"),
        [
            (Dispatcher, "_prepared"),
            (Dispatcher, "ended"),
            (Dispatcher, "do"),
            (Dispatcher, "_job_ended"),
        ],
    )
    def test_everybody_is_told(
        self,
        make_backend: MakeBackend,
        tiny: MakeModel,
        monkeypatch: pytest.MonkeyPatch,
        owner: type,
        method: str,
    ) -> None:
        fault = Fault(monkeypatch, owner, method, KeyError("a bug of ours"))
        backend = make_backend(load_wait=0.2)
        before = backend.generate(tiny(), "Hello", max_tokens=4)
        assert before.text
        running = backend.stream(tiny(), "Hello", max_tokens=LONG)
        next(running)
        with fault:
            waiting = backend.stream(tiny(seed=2), "Hello", max_tokens=4)
            for stream in (running, waiting):
                with pytest.raises(EngineDied, match="a bug of ours"):
                    list(stream)
        with pytest.raises(EngineDied):
            backend.generate(tiny(), "Hello", max_tokens=4)
        assert len(events(backend, "engine.failed")) == 1
        assert backend.close()

    def test_its_memory_comes_back(
        self, make_backend: MakeBackend, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watcher, backend = make_backend(), make_backend()
        before = watcher.run(active_memory)
        backend.load(tiny())
        fault = Fault(monkeypatch, Dispatcher, "_prepared", KeyError("a bug of ours"))
        with fault, pytest.raises(EngineDied):
            backend.generate(tiny(), "Hello", max_tokens=4)
        wait_for(backend, "engine.stopped")
        assert watcher.run(active_memory) <= before + 1024


class TestPreparing:
    @pytest.mark.parametrize("error", [ZeroDivisionError("a template"), SystemExit("a template")])
    def test_one_that_raises(
        self,
        backend: Backend,
        tiny: MakeModel,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
    ) -> None:
        fault = Fault(monkeypatch, Preparer, "_prepare", error)
        with fault, pytest.raises(GuardedLLMError, match="a template"):
            backend.generate(tiny(), "Hello", max_tokens=4)
        assert backend.generate(tiny(), "Hello", max_tokens=4).text

    def test_cancelled_meanwhile(
        self, backend: Backend, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The name stays taken until the engine has let go, and then is free."""
        backend.load(tiny())
        entered, leave = threading.Event(), threading.Event()
        prepare = Preparer._prepare

        def slow(self: Preparer, command: Any, turn: Any) -> Any:
            entered.set()
            leave.wait(30)
            return prepare(self, command, turn)

        with monkeypatch.context() as patch:
            patch.setattr(Preparer, "_prepare", slow)
            first = backend.stream(tiny(), "First", max_tokens=4, request_id="same")
            entered.wait(30)
            first.close()
            with pytest.raises(ValueError, match="under way"):
                backend.generate(tiny(), "Second", max_tokens=4, request_id="same")
            leave.set()
            wait_until(lambda: not backend._dispatcher.pending.requests)
        assert backend.generate(tiny(), "Second", max_tokens=4, request_id="same").text
        assert engine_of(backend)._preparer._prepared == {}


def test_the_error_of_a_quarantine_names_what_lifts_it(backend: Backend, tiny: MakeModel) -> None:
    """Two models of one name: the second has a name of its own."""
    backend.load(tiny())
    backend.generate(tiny(), "Hello", max_tokens=2, context_window=64)
    name, second = sorted(info.name for info in backend.models())
    assert (name, second) == (tiny(), f"{tiny()}[context_window=64]")
    backend.unload(tiny(), context_window=64)
    death = Death(cause="abort", text="it died", pid=1, code=-6, work="load", model=second)
    blame = backend._dispatcher.quarantine.blame
    for when in (0.0, 1.0, 2.0):
        backend._query(partial(blame, when, second, death))
    with pytest.raises(ModelQuarantined) as caught:
        backend.load(second)
    assert caught.value.hint == f"backend.forgive({second!r}) lifts it."
    assert not backend.forgive(tiny()), "the other one did nothing"
    assert backend.forgive(second)
    assert backend.load(second).name == second


def test_nothing_is_left_behind(backend: Backend, tiny: MakeModel) -> None:
    """After all kinds of ends the books are empty."""
    for n in range(6):
        stream = backend.stream(tiny(), "Hello", max_tokens=LONG)
        if n % 2:
            next(stream)
        stream.close()
    with pytest.raises(GuardedLLMError):
        backend.generate(tiny(context_window=64), "x" * 100)
    with pytest.raises(GuardedLLMError):
        backend.generate(tiny(), "Hello", max_tokens=LONG, timeout=0.2)
    assert backend.generate(tiny(), "Hello", max_tokens=4).text
    dispatcher, engine = backend._dispatcher, engine_of(backend)
    wait_until(lambda: not dispatcher.pending.requests)
    wait_until(lambda: not engine._generations)
    assert not (dispatcher.pending.by_engine_id or dispatcher.pending.jobs)
    assert engine._preparer._prepared == {}
    assert len(decoder_of(backend, tiny())) == 0


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_oss"])
def test_kept_prefixes_take_what_is_counted(
    make_backend: MakeBackend, tiny: MakeModel, architecture: str
) -> None:
    """A row's cache is copied out of its batch: otherwise it keeps every row's alive."""
    backend = make_backend(prefix_cache="16MiB")
    model = tiny(architecture=architecture)
    backend.load(model)
    before = backend.run(active_memory)
    streams = [backend.stream(model, f"{n} q " * 40, max_tokens=2 + n * 3) for n in range(8)]
    for stream in streams:
        list(stream)
    held = backend.run(active_memory) - before
    counted = backend.run(lambda: engine_of(backend)._residency.prefixes.nbytes)
    # MLX may share a buffer that is larger than its array, but by little.
    assert 0 < held <= 1.25 * counted
