"""Several models: one load for all who wait, no load beside a generation, no starvation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend, GuardedLLMError
from mlx_guarded_llm.engine.prompt.tokenizer import load_tokenizer
from mlx_guarded_llm.errors import LoadDeferredTimeout, ModelInvalid
from mlx_guarded_llm.models.spec import ModelFiles
from mlx_guarded_llm.record import overlaps
from mlx_guarded_llm.testing.tiny import make_tiny_model
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events, text_of, wait_for, wait_until

LONG = 1500  # tokens; seconds of generation


class Flood(threading.Thread):
    """Requests for a model one after the other, each queued before the last one ended."""

    def __init__(self, backend: Backend, model: str, tokens: int = 20) -> None:
        super().__init__(daemon=True)
        self.backend, self.model, self.tokens = backend, model, tokens
        self.over = threading.Event()

    def run(self) -> None:
        def ask() -> Any:
            return self.backend.stream(self.model, "Hello", max_tokens=self.tokens)

        current, following = ask(), ask()
        while not self.over.is_set():
            list(current)
            current, following = following, ask()
        list(current)
        list(following)

    def __enter__(self) -> Flood:
        self.start()
        wait_until(lambda: len(events(self.backend, "request.finished", model=self.model)) > 1)
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join(60)


def test_two_that_fit_stay(backend: Backend, scripted: MakeModel) -> None:
    a, b = scripted("I am A."), scripted("I am B.")
    for _ in range(3):
        assert backend.generate(a, "Who?").text == "I am A."
        assert backend.generate(b, "Who?").text == "I am B."
    assert len(events(backend, "load.finished")) == 2
    assert events(backend, "unload.") == []
    infos = backend.models()
    assert {info.name: info.state for info in infos} == {a: "resident", b: "resident"}
    assert all(info.active == info.waiting == 0 and info.memory_bytes > 0 for info in infos)


def test_two_make_progress_together(backend: Backend, tiny: MakeModel) -> None:
    """A short answer begins and ends in the middle of a long one, and nobody stands still."""
    a, b = tiny(seed=1), tiny(seed=2)
    alone = tuple(backend.generate(m, "Hello", max_tokens=n).text for m, n in ((a, 800), (b, 30)))
    stream = backend.stream(a, "Hello", max_tokens=800, request_id="long")
    first = next(stream)
    short = backend.generate(b, "Hello", max_tokens=30, request_id="short")
    assert (first.text + "".join(chunk.text for chunk in stream), short.text) == alone
    order = [(e.kind, e.request_id) for e in events(backend, "request.")]
    assert order.index(("request.first_token", "long")) < order.index(("request.started", "short"))
    assert order.index(("request.finished", "short")) < order.index(("request.finished", "long"))
    assert events(backend, "request.paused") == []


def test_one_load_for_twenty(backend: Backend, scripted: MakeModel) -> None:
    model = scripted("I am A.")
    streams = [backend.stream(model, "Who?") for _ in range(20)]
    assert {text_of(stream) for stream in streams} == {"I am A."}
    assert len(events(backend, "load.queued")) == len(events(backend, "load.finished")) == 1


def test_two_names_of_one_folder_are_one_model(
    make_backend: MakeBackend, aliases: Callable[..., Path], scripted: MakeModel
) -> None:
    folder = scripted("I am A.")
    backend = make_backend(aliases(alpha={"model": folder}, beta={"model": folder}))
    for name in ("alpha", "beta", folder):
        result = backend.generate(name, "Who?")
        assert result.text == "I am A." and result.guard.requested_model == name
    assert len(events(backend, "load.finished")) == 1


class TestLoadBesideAGeneration:
    def test_it_waits(self, backend: Backend, tiny: MakeModel, scripted: MakeModel) -> None:
        a, b = tiny(), scripted("I am B.")
        alone = backend.generate(a, "Hello", max_tokens=400).text
        long = backend.stream(a, "Hello", max_tokens=400)
        next(long)
        result = backend.generate(b, "Who?")
        (deferred,) = events(backend, "load.deferred", model=b)
        assert deferred.waiting_for == ((long.request_id, a),)
        assert result.text == "I am B." and result.guard.deferred > 0
        end = wait_for(backend, "request.finished", request_id=long.request_id)
        (began,) = events(backend, "load.started", model=b)
        assert end.time <= began.time and began.details["paused"] == []
        assert alone.endswith(text_of(long))
        assert overlaps(backend.timeline()) == []
        assert long.request_id in backend.explain(result.guard.request_id)

    @pytest.mark.parametrize("load_wait", [0, 0.1])
    @pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
    def test_at_load_wait_the_generation_pauses(
        self,
        make_backend: MakeBackend,
        tiny: MakeModel,
        scripted: MakeModel,
        load_wait: float,
        options: dict[str, Any],
    ) -> None:
        a, b = tiny(), scripted("I am B.")
        backend = make_backend(load_wait=load_wait)
        tokens = 500
        long = backend.stream(a, "Hello", max_tokens=tokens, **options)
        first = next(long)
        assert backend.generate(b, "Who?").text == "I am B."
        (began,) = events(backend, "load.started", model=b)
        (queued,) = events(backend, "load.queued", model=b)
        assert began.details["paused"] == [long.request_id]
        assert began.time - queued.time >= load_wait
        chunks = [first, *long]
        assert chunks[-1].guard and chunks[-1].guard.paused > 0
        paused, resumed = (
            events(backend, f"request.{verb}", request_id=long.request_id)
            for verb in ("paused", "resumed")
        )
        (loaded,) = events(backend, "load.finished", model=b)
        assert len(paused) == len(resumed) == 1
        assert paused[0].time <= began.time <= loaded.time <= resumed[0].time
        assert overlaps(backend.timeline()) == []
        alone = backend.generate(a, "Hello", max_tokens=tokens, **options)
        assert text_of(chunks) == alone.text, "no token was lost by the pause"

    @pytest.mark.parametrize("isolation", ["thread"])  # where it is read is seen from inside
    def test_its_tokenizer_is_read_meanwhile(
        self, backend: Backend, tiny: MakeModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a, b = tiny(seed=1), tiny(seed=2)
        long = backend.stream(a, "Hello", max_tokens=LONG)
        next(long)
        read: list[str] = []

        def watched(files: ModelFiles) -> Any:
            read.append(threading.current_thread().name)
            return load_tokenizer(files)

        monkeypatch.setattr("mlx_guarded_llm.engine.prompt.tokenizer.load_tokenizer", watched)
        loading = threading.Thread(target=backend.load, args=(b,))
        loading.start()
        wait_until(lambda: bool(read))
        assert events(backend, "load.started", model=b) == []
        long.close()
        loading.join(60)
        wait_for(backend, "load.finished", model=b)
        assert [name.rpartition("-")[0] for name in read] == ["mlx-guarded-prepare"]

    def test_or_the_load_gives_up(self, make_backend: MakeBackend, tiny: MakeModel) -> None:
        a, b = tiny(seed=1), tiny(seed=2)
        backend = make_backend(load_wait=0.2, on_load_deadline="raise")
        long = backend.stream(a, "Hello", max_tokens=LONG, request_id="the-holder")
        next(long)
        with pytest.raises(LoadDeferredTimeout) as caught:
            backend.generate(b, "Hello", max_tokens=4)
        error = caught.value
        assert error.held_by == (("the-holder", a),)
        assert error.model == b and error.waited >= 0.2
        assert "the-holder" in str(error) and error.hint and error.retryable and error.fallback
        with pytest.raises(LoadDeferredTimeout):
            backend.load(b)
        long.close()
        wait_for(backend, "request.finished", request_id="the-holder")
        assert backend.generate(b, "Hello", max_tokens=4).text


class TestFairness:
    """A under requests without end, and B is wanted."""

    def test_b_is_not_starved(self, make_backend: MakeBackend, tiny: MakeModel) -> None:
        a, b, window = tiny(seed=1), tiny(seed=2), 0.3
        backend = make_backend(fairness_window=window)
        with Flood(backend, a):
            backend.generate(b, "Hello", max_tokens=4)
        (wanted,) = events(backend, "load.queued", model=b)
        (began,) = events(backend, "load.started", model=b)
        closing = wanted.time + window
        queued = {e.request_id: e.time for e in events(backend, "request.queued", model=a)}
        started = {e.request_id: e.time for e in events(backend, "request.started", model=a)}
        ended = {e.request_id: e.time for e in events(backend, "request.finished", model=a)}
        # When the window had passed nobody passed any more: the load waited only for
        # what then was running.
        assert [r for r, at in started.items() if closing < at < began.time] == []
        late = [r for r, at in queued.items() if at > closing]
        assert all(started[r] >= began.time for r in late)
        assert all(at <= began.time for r, at in ended.items() if started[r] < began.time)
        assert began.details["paused"] == [], "nothing had to be paused for it"

    def test_without_a_window_nobody_passes(
        self, make_backend: MakeBackend, tiny: MakeModel
    ) -> None:
        a, b = tiny(seed=1), tiny(seed=2)
        backend = make_backend(fairness_window=0)
        long = backend.stream(a, "Hello", max_tokens=LONG)
        next(long)
        other = backend.stream(b, "Hello", max_tokens=4)
        wait_for(backend, "load.deferred", model=b)
        late = backend.stream(a, "Hello again", max_tokens=4)
        wait_for(backend, "request.queued", request_id=late.request_id)
        long.close()
        for stream in (other, late):
            list(stream)
        (loaded,) = events(backend, "load.finished", model=b)
        (start,) = events(backend, "request.started", request_id=late.request_id)
        assert start.time >= loaded.time

    def test_within_the_window_newcomers_pass(
        self, make_backend: MakeBackend, tiny: MakeModel
    ) -> None:
        a, b = tiny(seed=1), tiny(seed=2)
        backend = make_backend(fairness_window=60)
        long = backend.stream(a, "Hello", max_tokens=LONG)
        next(long)
        other = backend.stream(b, "Hello", max_tokens=4)
        wait_for(backend, "load.deferred", model=b)
        backend.generate(a, "Hello again", max_tokens=4)
        assert events(backend, "load.started", model=b) == []
        long.close()
        list(other)


class TestFailedLoad:
    def test_all_who_wait_are_told_and_the_next_works(
        self, backend: Backend, tmp_path: Path, tiny: MakeModel
    ) -> None:
        folder = make_tiny_model(tmp_path / "model")
        config = folder / "config.json"
        sound = config.read_text()
        config.write_text(sound.replace('"hidden_size": 64', '"hidden_size": 128'))
        # While another model is answering the load is deferred, so that all five wait for it.
        other = backend.stream(tiny(), "Hello", max_tokens=2000)
        next(other)
        streams = [backend.stream(str(folder), "Hello", max_tokens=4) for _ in range(5)]
        wait_until(lambda: len(events(backend, "request.queued", model=str(folder))) == 5)
        other.close()
        errors: list[GuardedLLMError] = []
        for stream in streams:
            with pytest.raises(ModelInvalid) as caught:
                list(stream)
            errors.append(caught.value)
        assert len(events(backend, "load.failed")) == 1
        assert all("config" in str(error) for error in errors)
        config.write_text(sound)
        assert backend.generate(str(folder), "Hello", max_tokens=4).text
        assert backend.generate(tiny(), "Hello", max_tokens=4).text

    def test_another_model_goes_on(self, backend: Backend, tmp_path: Path, tiny: MakeModel) -> None:
        folder = make_tiny_model(tmp_path / "model")
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"hidden_size": 64', '"hidden_size": 128'))
        alone = backend.generate(tiny(), "Hello", max_tokens=40).text
        stream = backend.stream(tiny(), "Hello", max_tokens=40)
        with pytest.raises(ModelInvalid):
            backend.load(str(folder))
        assert text_of(stream) == alone


class TestLoadAndUnload:
    def test_by_name(self, backend: Backend, tiny: MakeModel) -> None:
        info = backend.load(tiny())
        assert (info.name, info.state, info.pinned) == (tiny(), "resident", False)
        assert info.context_window == 2048 and info.memory_bytes > 0 and len(info.fingerprint) == 32
        assert backend.load(tiny()).name == tiny()
        assert len(events(backend, "load.finished")) == 1
        assert backend.unload(tiny()) is True
        assert backend.models() == []
        assert backend.unload(tiny()) is False

    async def test_async(self, backend: Backend, tiny: MakeModel) -> None:
        assert (await backend.aload(tiny(), pin=True)).pinned
        assert await backend.aunload(tiny())
        assert not await backend.aunload(tiny())

    def test_progress(self, backend: Backend, tiny: MakeModel) -> None:
        steps: list[Any] = []
        backend.load(tiny(), on_progress=steps.append)
        wait_until(lambda: steps and steps[-1].stage == "load")
        wait_until(lambda: steps[-1].done == steps[-1].total > 0)

    def test_a_model_that_leaves_at_once(self, make_backend: MakeBackend, tiny: MakeModel) -> None:
        backend = make_backend(keep_alive=0)
        assert backend.load(tiny()).name == tiny()

    async def test_a_model_that_leaves_at_once_async(
        self, make_backend: MakeBackend, tiny: MakeModel
    ) -> None:
        backend = make_backend(keep_alive=0)
        assert (await backend.aload(tiny())).name == tiny()

    def test_unload_waits_for_its_requests(self, backend: Backend, tiny: MakeModel) -> None:
        stream = backend.stream(tiny(), "Hello", max_tokens=60)
        next(stream)
        assert backend.unload(tiny())
        (end,) = events(backend, "request.finished", request_id=stream.request_id)
        (began,) = events(backend, "unload.started")
        assert end.time <= began.time and end.details["completion_tokens"] == 60
        assert list(stream)[-1].finish_reason == "length"

    def test_wanted_again_while_it_leaves(self, backend: Backend, tiny: MakeModel) -> None:
        first = backend.stream(tiny(), "Hello", max_tokens=30)
        next(first)
        leave = threading.Thread(target=backend.unload, args=(tiny(),))
        leave.start()
        wait_for(backend, "unload.queued")
        second = backend.generate(tiny(), "Hello", max_tokens=30)
        leave.join(60)
        assert second.text.endswith(text_of(first)) and second.finish_reason == "length"
