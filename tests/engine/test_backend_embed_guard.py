"""To the guard an embedding is a request like any other."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from mlx_guarded_llm import Backend, Progress
from mlx_guarded_llm.errors import (
    BackendClosed,
    MemoryRefused,
    QueueFull,
    RequestCancelled,
    RequestTimeout,
)
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import PATIENCE, active_memory, events, wait_for, wait_until
from tests.engine._embed import LONG, TEXTS, kinds


class TestManyCallers:
    def test_threads_get_their_own_vectors(self, backend: Backend, embedder: MakeModel) -> None:
        folder = embedder()
        expected = dict(zip(TEXTS, backend.embed(folder, TEXTS).vectors, strict=True))

        def ask(n: int) -> bool:
            mine = TEXTS[n : n + 1 + n % 9]
            vectors = backend.embed(folder, mine).vectors
            return np.allclose(vectors, [expected[text] for text in mine], atol=1e-5)

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(ask, range(48)))

    async def test_the_event_loop_is_not_blocked(
        self, backend: Backend, embedder: MakeModel
    ) -> None:
        folder = embedder()
        answers = await asyncio.gather(*(backend.aembed(folder, [t]) for t in TEXTS[:10]))
        together = backend.embed(folder, TEXTS[:10]).vectors
        assert np.allclose([a.vectors[0] for a in answers], together, atol=1e-5)

    async def test_cancelling_the_task_cancels_the_request(
        self, backend: Backend, embedder: MakeModel
    ) -> None:
        folder = embedder(context_window=128)
        task = asyncio.create_task(backend.aembed(folder, LONG, request_id="long"))
        await asyncio.to_thread(wait_for, backend, "request.started", request_id="long")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_for, backend, "request.failed", request_id="long")

    def test_a_query_does_not_wait_for_hundreds_of_passages(
        self, backend: Backend, embedder: MakeModel
    ) -> None:
        folder = embedder(context_window=128)
        backend.load(folder)
        passages = threading.Thread(
            target=backend.embed, args=(folder, LONG), kwargs={"request_id": "long"}
        )
        passages.start()
        wait_for(backend, "request.started", request_id="long")
        for i in range(5):
            backend.embed(folder, [f"query {i}"], request_id=f"query-{i}")
        assert not events(backend, "request.finished", request_id="long")
        passages.join(PATIENCE)
        assert events(backend, "request.finished", request_id="long")


class TestTheGuard:
    @pytest.fixture
    def folder(self, embedder: MakeModel) -> str:
        return embedder(context_window=128)

    @pytest.fixture
    def start(self, backend: Backend, folder: str) -> Any:
        """Begin a long request in a thread; returns what it comes to."""
        pool = ThreadPoolExecutor()

        def begin(name: str = "long", **options: Any) -> Any:
            texts = LONG
            call = pool.submit(backend.embed, folder, texts, request_id=name, **options)
            wait_for(backend, "request.started", request_id=name)
            return call

        yield begin
        pool.shutdown()

    def test_a_chat_model_streams_beside_it(
        self, backend: Backend, tiny: MakeModel, folder: str, start: Any
    ) -> None:
        backend.load(folder)
        backend.load(tiny())
        told: list[int] = []
        call = start(on_progress=lambda p: told.append(p.done))
        stream = backend.stream(tiny(), "Hi", max_tokens=50, request_id="chat")
        next(stream)
        before = len(told)
        tokens = list(stream)
        assert tokens[-1].usage is not None and tokens[-1].usage.completion_tokens == 50
        assert len(told) > before, "the texts stood still meanwhile"
        assert not call.done()
        backend.cancel("long")
        assert isinstance(call.exception(PATIENCE), RequestCancelled)

    def test_a_load_is_deferred_and_then_pauses_it(
        self, make_backend: MakeBackend, tiny: MakeModel, folder: str
    ) -> None:
        backend = make_backend(load_wait=0.2, fairness_window=0.0)
        expected = backend.embed(folder, LONG[:1]).vectors[0]
        with ThreadPoolExecutor() as pool:
            call = pool.submit(backend.embed, folder, LONG, request_id="long")
            wait_for(backend, "request.started", request_id="long")
            backend.generate(tiny(), "Hi", max_tokens=2)
            deferred = wait_for(backend, "load.deferred", model=tiny())
            assert deferred.waiting_for == (("long", folder),)
            answer = call.result(PATIENCE)
        assert answer.guard.paused > 0
        assert np.allclose(answer.vectors, expected, atol=1e-5)
        assert kinds(backend, "long").count("request.paused") == 1

    def test_its_own_load_is_deferred_by_a_generation(
        self, make_backend: MakeBackend, tiny: MakeModel, folder: str
    ) -> None:
        backend = make_backend(load_wait=0.2, fairness_window=0.0)
        with backend.stream(tiny(), "Hi", max_tokens=1500, request_id="chat") as stream:
            next(stream)
            answer = backend.embed(folder, ["x"])
            assert answer.guard.deferred > 0
            assert wait_for(backend, "load.deferred", model=folder).waiting_for == (
                ("chat", tiny()),
            )
            assert next(stream).text  # it goes on

    def test_cancel_frees_it_within_a_step(self, backend: Backend, folder: str, start: Any) -> None:
        told: list[Progress] = []
        call = start(on_progress=told.append)
        wait_until(lambda: told and told[-1].stage == "embed")
        backend.cancel("long")
        assert isinstance(call.exception(PATIENCE), RequestCancelled)
        wait_until(lambda: backend.models()[0].active == 0)
        assert told[-1].done < len(LONG)
        assert backend.embed(folder, ["x"]).vectors.shape == (1, 32)
        assert "cancelled" in backend.explain("long")

    def test_its_deadline_holds(self, backend: Backend, folder: str) -> None:
        backend.load(folder)
        with pytest.raises(RequestTimeout):
            backend.embed(folder, LONG * 10, timeout=1.0)
        wait_until(lambda: backend.models()[0].active == 0)

    def test_closing_ends_it(self, make_backend: MakeBackend, folder: str) -> None:
        backend = make_backend()
        with ThreadPoolExecutor() as pool:
            call = pool.submit(backend.embed, folder, LONG, request_id="long")
            wait_for(backend, "request.started", request_id="long")
            assert backend.close()
            assert isinstance(call.exception(PATIENCE), BackendClosed)
        with pytest.raises(BackendClosed):
            backend.embed(folder, ["x"])

    def test_unload_waits_for_it(self, backend: Backend, folder: str, start: Any) -> None:
        call = start()
        with ThreadPoolExecutor() as pool:
            unload = pool.submit(backend.unload, folder)
            wait_for(backend, "unload.queued")
            assert not unload.done()
            backend.cancel("long")
            assert unload.result(PATIENCE) is True
        assert isinstance(call.exception(PATIENCE), RequestCancelled)
        assert backend.models() == []

    def test_it_is_loaded_ahead_and_unloaded_by_name(self, backend: Backend, folder: str) -> None:
        before = backend.run(active_memory)
        info = backend.load(folder)
        assert info.state == "resident" and info.memory_bytes > 0
        assert backend.load(folder, task="embed").name == info.name
        backend.embed(folder, ["x"])
        assert len(events(backend, "load.finished")) == 1
        assert backend.unload(folder)
        assert backend.run(active_memory) == before

    def test_one_folder_may_do_both(
        self, backend: Backend, tiny: MakeModel, embedder: MakeModel
    ) -> None:
        """A language model's folder can embed too, where mlx-embeddings has its type."""
        folder = tiny(architecture="qwen3")
        text = backend.generate(folder, "Hi", max_tokens=3, seed=0, temperature=0.0).text
        assert backend.embed(folder, ["Hi"]).vectors.shape == (1, 64)
        again = backend.generate(folder, "Hi", max_tokens=3, seed=0, temperature=0.0)
        assert again.text == text
        assert {info.state for info in backend.models()} == {"resident"}
        assert len(backend.models()) == 2

    def test_an_idle_one_is_evicted(
        self, make_backend: MakeBackend, embedder: MakeModel, tiny: MakeModel
    ) -> None:
        large = embedder(hidden_size=256, layers=8)  # 17 MB of weights
        backend = make_backend(memory_budget="28MB", prefix_cache=0, prefill_step_size=16)
        backend.embed(large, ["x"])
        backend.generate(tiny(hidden_size=256, layers=4), "Hi", max_tokens=2)
        assert [event.details["evict"] for event in events(backend, "load.started")][-1] == [large]
        assert [info.name for info in backend.models()] == [tiny(hidden_size=256, layers=4)]

    def test_keep_alive_unloads_it(self, make_backend: MakeBackend, folder: str) -> None:
        backend = make_backend(keep_alive=0.05)
        backend.embed(folder, ["x"])
        wait_for(backend, "unload.finished", model=folder)

    def test_a_text_that_cannot_fit_is_refused(
        self, make_backend: MakeBackend, embedder: MakeModel
    ) -> None:
        folder = embedder(context_window=2048)
        backend = make_backend(memory_budget="20MB", prefix_cache=0, prefill_step_size=64)
        with pytest.raises(MemoryRefused, match="2002 tokens"):
            backend.embed(folder, ["x" * 2000])
        assert backend.embed(folder, ["x" * 20]).vectors.shape == (1, 32)

    def test_too_many_texts_are_told_to_wait(self, backend: Backend, folder: str) -> None:
        """40 million characters take longer to encode than this test waits."""
        huge = ["y " * 20_000] * 1000

        def refused() -> bool:
            try:
                backend.embed(folder, huge, truncate=True, timeout=0.5)
            except QueueFull as error:
                return "characters are under way" in str(error)
            except RequestTimeout:
                return False
            return False

        with ThreadPoolExecutor() as pool:
            call = pool.submit(backend.embed, folder, huge, truncate=True, request_id="first")
            wait_until(lambda: "first" in backend._dispatcher.pending.requests)
            wait_until(refused)
            assert backend.embed(folder, ["z"]).vectors.shape == (1, 32)  # it is not held up
            backend.cancel("first")
            assert isinstance(call.exception(PATIENCE), RequestCancelled)
        assert backend.embed(folder, huge[:1], truncate=True).usage.prompt_tokens == 128
