"""Cancelling, wherever a request is, and streams that are left early."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import pytest

from mlx_guarded_llm import Backend, Stream, logs
from mlx_guarded_llm.errors import BackendClosed, QueueFull, RequestCancelled, RequestTimeout
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events, text_of, wait_for, wait_until

LONG = 1500


def by_break(stream: Stream) -> None:
    for n, _ in enumerate(stream):
        if n == 2:
            break


def by_close(stream: Stream) -> None:
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []


def by_with(stream: Stream) -> None:
    with stream:
        next(stream)


def by_an_error(stream: Stream) -> None:
    try:
        with stream:
            next(stream)
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass


def by_nothing(stream: Stream) -> None:
    next(stream)


@pytest.mark.parametrize("leave", [by_break, by_close, by_with, by_an_error, by_nothing])
def test_a_stream_left_early_stops_the_generation(
    backend: Backend, tiny: MakeModel, leave: Callable[[Stream], None]
) -> None:
    stream = backend.stream(tiny(), "Hello", max_tokens=LONG)
    identity = stream.request_id
    leave(stream)
    del stream
    gc.collect()
    end = wait_for(backend, "request.finished", request_id=identity)
    assert end.cause == "cancelled"
    assert end.details["completion_tokens"] < 200, "it stopped long before its end"
    assert backend.generate(tiny(), "Hello", max_tokens=4).text


def test_running(backend: Backend, tiny: MakeModel) -> None:
    stream = backend.stream(tiny(), "Hello", max_tokens=LONG)
    first = next(stream)
    backend.cancel(stream.request_id)
    backend.cancel(stream.request_id)
    chunks = [first, *stream]
    assert chunks[-1].finish_reason == "cancelled"
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens < 200
    whole = backend.generate(tiny(), "Hello", max_tokens=len(text_of(chunks)) + 50)
    assert whole.text.startswith(text_of(chunks).rstrip("\ufffd"))


def test_generate_from_another_thread(backend: Backend, tiny: MakeModel) -> None:
    def cancel() -> None:
        wait_for(backend, "request.first_token", request_id="mine")
        backend.cancel("mine")

    thread = threading.Thread(target=cancel)
    thread.start()
    result = backend.generate(tiny(), "Hello", max_tokens=LONG, request_id="mine")
    thread.join(60)
    assert result.finish_reason == "cancelled" and result.usage.completion_tokens < LONG


def test_waiting(make_backend: MakeBackend, tiny: MakeModel) -> None:
    backend = make_backend(max_active=1)
    alone = backend.generate(tiny(), "Hello", max_tokens=300).text
    running = backend.stream(tiny(), "Hello", max_tokens=300)
    text = next(running).text
    waiting = backend.stream(tiny(), "Hello", max_tokens=4)
    wait_for(backend, "request.queued", request_id=waiting.request_id)
    backend.cancel(waiting.request_id)
    with pytest.raises(RequestCancelled):
        list(waiting)
    assert events(backend, "request.started", request_id=waiting.request_id) == []
    assert text + text_of(running) == alone


def test_the_only_one_who_wanted_a_load(backend: Backend, tiny: MakeModel) -> None:
    running = backend.stream(tiny(), "Hello", max_tokens=LONG)
    next(running)
    waiting = backend.stream(tiny(seed=2), "Hello", max_tokens=4)
    wait_for(backend, "load.deferred")
    waiting.close()
    wait_for(backend, "load.cancelled")
    running.close()
    backend.generate(tiny(), "Hello", max_tokens=4)
    assert events(backend, "load.started", model=tiny(seed=2)) == []


def test_one_of_two_who_wanted_a_load(backend: Backend, tiny: MakeModel) -> None:
    other = tiny(seed=2)
    running = backend.stream(tiny(), "Hello", max_tokens=60)
    next(running)
    leaver, keeper = (backend.stream(other, "Hello", max_tokens=4) for _ in range(2))
    wait_until(lambda: len(events(backend, "request.queued", model=other)) == 2)
    leaver.close()
    assert list(keeper)[-1].finish_reason == "length"


def test_while_its_model_loads(backend: Backend, tiny: MakeModel) -> None:
    model = tiny(layers=8, hidden_size=256)
    stream = backend.stream(model, "Hello", max_tokens=LONG)
    wait_for(backend, "load.started")
    backend.cancel(stream.request_id)
    try:
        assert list(stream)[-1].finish_reason == "cancelled"  # it had started already
    except RequestCancelled:
        pass
    assert backend.generate(model, "Hello", max_tokens=4).text


def test_at_once(backend: Backend, tiny: MakeModel) -> None:
    for _ in range(10):
        backend.stream(tiny(), "Hello", max_tokens=LONG).close()
    result = backend.generate(tiny(), "Hello", max_tokens=4)
    assert result.finish_reason == "length"
    wait_until(lambda: all(info.active == info.waiting == 0 for info in backend.models()))


def test_a_name_used_again_at_once(backend: Backend, tiny: MakeModel) -> None:
    """However far the first had come, the second is another request."""
    backend.load(tiny())
    expected = backend.generate(tiny(), "Second", max_tokens=8).text
    for n in range(10):
        first = backend.stream(tiny(), "First", max_tokens=LONG, request_id="same")
        if n % 2:
            wait_for(backend, "request.queued", request_id="same")
        first.close()

        def free() -> bool:
            try:
                second = backend.generate(tiny(), "Second", max_tokens=8, request_id="same")
            except ValueError:  # the first is still being taken back
                return False
            assert second.text == expected and second.finish_reason == "length"
            return True

        wait_until(free)


def test_a_refused_stream_does_not_cancel_its_namesake(backend: Backend, tiny: MakeModel) -> None:
    alone = backend.generate(tiny(), "Hello", max_tokens=40).text
    stream = backend.stream(tiny(), "Hello", max_tokens=40, request_id="same")
    text = next(stream).text
    double = backend.stream(tiny(), "Hello", max_tokens=40, request_id="same")
    backend.models()  # it has been refused by now
    double.close()
    assert text + text_of(stream) == alone


def test_unknown_and_ended(backend: Backend, tiny: MakeModel) -> None:
    backend.cancel("nobody")
    result = backend.generate(tiny(), "Hello", max_tokens=4)
    backend.cancel(result.guard.request_id)
    assert backend.generate(tiny(), "Hello", max_tokens=4).text == result.text


class TestTimeouts:
    def test_running(self, backend: Backend, tiny: MakeModel) -> None:
        backend.load(tiny())
        with pytest.raises(RequestTimeout):
            backend.generate(tiny(), "Hello", max_tokens=LONG, timeout=0.3)
        wait_until(lambda: all(info.active == 0 for info in backend.models()))
        assert backend.generate(tiny(), "Hello", max_tokens=4).text

    def test_of_the_backend(self, make_backend: MakeBackend, tiny: MakeModel) -> None:
        backend = make_backend(timeout=0.3)
        backend.load(tiny(), timeout=60)
        with pytest.raises(RequestTimeout):
            backend.generate(tiny(), "Hello", max_tokens=LONG)
        assert backend.generate(tiny(), "Hello", max_tokens=4, timeout=60).text

    @pytest.mark.parametrize("timeout", [float("inf"), 1e12])
    def test_without_end(self, make_backend: MakeBackend, tiny: MakeModel, timeout: float) -> None:
        backend = make_backend(
            timeout=timeout, load_wait=timeout, keep_alive=timeout, fairness_window=timeout
        )
        assert backend.load(tiny(), timeout=timeout).name == tiny()
        assert backend.generate(tiny(), "Hello", max_tokens=4, timeout=timeout).text
        assert backend.run(lambda: 1, timeout=timeout) == 1

    def test_a_load_that_nobody_waits_for(self, backend: Backend, tiny: MakeModel) -> None:
        stream = backend.stream(tiny(), "Hello", max_tokens=LONG)
        next(stream)
        with pytest.raises(RequestTimeout):
            backend.load(tiny(seed=2), timeout=0.1)
        stream.close()
        assert backend.generate(tiny(), "Hello", max_tokens=4).text
        assert events(backend, "load.started", model=tiny(seed=2)) == []


class TestQueue:
    def test_bounded_and_nothing_accepted_is_lost(
        self, make_backend: MakeBackend, tiny: MakeModel
    ) -> None:
        backend = make_backend(max_queue=4, max_active=2)
        backend.load(tiny())
        streams = [backend.stream(tiny(), f"Hello {n}", max_tokens=20) for n in range(40)]
        ends: list[str] = []
        for stream in streams:
            try:
                ends.append(str(list(stream)[-1].finish_reason))
            except QueueFull as error:
                ends.append("full" if error.hint else "full, without a hint")
        assert ends.count("length") >= 6 and ends.count("full") >= 1
        assert ends.count("length") + ends.count("full") == 40
        assert backend.generate(tiny(), "Hello", max_tokens=4).text

    def test_in_order_of_arrival(self, make_backend: MakeBackend, tiny: MakeModel) -> None:
        backend = make_backend(max_active=1)
        backend.load(tiny())
        streams = [backend.stream(tiny(), "Hello", max_tokens=4) for _ in range(6)]
        for stream in streams:
            list(stream)
        started = [event.request_id for event in events(backend, "request.started")]
        assert started == [stream.request_id for stream in streams]


class TestClose:
    def test_everybody_is_told(self, make_backend: MakeBackend, tiny: MakeModel) -> None:
        backend = make_backend(max_active=1)
        running = backend.stream(tiny(), "Hello", max_tokens=LONG)
        next(running)
        waiting, loading = (
            backend.stream(model, "Hello", max_tokens=LONG) for model in (tiny(), tiny(seed=2))
        )
        wait_for(backend, "load.deferred")
        assert backend.close()
        for stream in (running, waiting, loading):
            with pytest.raises(BackendClosed):
                list(stream)
        assert backend.close(), "twice is harmless"
        assert len(backend.record.events()) > 5, "the record stays"

    def test_unused(self, make_backend: MakeBackend) -> None:
        backend = make_backend()
        assert backend.models() == [] and backend.memory() == (0, 0)
        assert backend.close()

    def test_during_a_load(
        self, make_backend: MakeBackend, tiny: MakeModel, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend = make_backend()
        stream = backend.stream(tiny(layers=8, hidden_size=256), "Hello", max_tokens=4)
        wait_for(backend, "load.started")
        assert backend.close()
        with pytest.raises(BackendClosed):
            list(stream)
        assert logs.flush(60)
        assert [r for r in caplog.records if r.levelname in ("ERROR", "CRITICAL")] == []

    def test_while_others_ask(self, make_backend: MakeBackend, tiny: MakeModel) -> None:
        """Each call either works or says that the backend is closed; none hangs."""
        for _ in range(5):
            backend = make_backend()
            outcomes: list[str] = []

            def ask(backend: Backend = backend, outcomes: list[str] = outcomes) -> None:
                try:
                    while True:
                        backend.generate(tiny(), "Hello", max_tokens=1, timeout=30)
                        backend.models()
                except BackendClosed:
                    outcomes.append("closed")
                except BaseException as error:
                    outcomes.append(repr(error))

            threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
            for thread in threads:
                thread.start()
            backend.close()
            for thread in threads:
                thread.join(40)
            assert outcomes == ["closed"] * 4

    def test_two_backends_share_the_process(
        self, make_backend: MakeBackend, tiny: MakeModel
    ) -> None:
        one, two = make_backend(), make_backend()
        alone = one.generate(tiny(), "Hello", max_tokens=40).text
        streams = [backend.stream(tiny(), "Hello", max_tokens=40) for backend in (one, two)]
        assert [text_of(stream) for stream in streams] == [alone, alone]
        stream = two.stream(tiny(), "Hello", max_tokens=40)
        text = next(stream).text
        assert one.close()
        assert text + text_of(stream) == alone
