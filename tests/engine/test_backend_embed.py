"""Embedding models in the engine: right vectors, and a request like any other."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_guarded_llm import Backend, ModelSpec, Progress
from mlx_guarded_llm.errors import (
    BackendClosed,
    InvalidRequest,
    MemoryRefused,
    ModelInvalid,
    ModelUnsupported,
    NonFiniteLogits,
    QueueFull,
    RequestCancelled,
    RequestTimeout,
)
from mlx_guarded_llm.memory.footprint import predict
from mlx_guarded_llm.models import verify
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import PATIENCE, active_memory, events, wait_for, wait_until
from tests.engine._bert import bert_vector

WORDS = ["a", "cat", "sat on", "the mat,", "which", "was not its own: it belonged", "to a dog."]
LONG = ["x " * 100] * 300  # each fills a micro-batch: a second or more
TEXTS = [" ".join(WORDS[i % 7 : i % 7 + 1 + i % 3]) + str(i) for i in range(60)]


def kinds(backend: Backend, request_id: str) -> list[str]:
    return [event.kind for event in events(backend, "request.", request_id=request_id)]


class TestVectors:
    @pytest.mark.parametrize("pooling", [None, "mean", "cls"])
    def test_they_are_those_of_the_model(
        self, backend: Backend, embedder: MakeModel, pooling: str | None
    ) -> None:
        folder = embedder(pooling=pooling)
        answer = backend.embed(folder, TEXTS)
        assert answer.vectors.dtype == np.float32
        assert answer.vectors.shape == (len(TEXTS), 32)
        for text, vector in zip(TEXTS, answer.vectors, strict=True):
            expected = bert_vector(folder, backend.tokens(folder, text), pooling=pooling or "mean")
            assert np.allclose(vector, expected, atol=1e-4)

    def test_they_are_the_same_alone_and_in_any_company(
        self, make_backend: MakeBackend, embedder: MakeModel
    ) -> None:
        folder, small = embedder(), make_backend(prefill_step_size=1)
        together = make_backend().embed(folder, TEXTS).vectors
        assert np.allclose(small.embed(folder, TEXTS).vectors, together, atol=1e-5)
        alone = [small.embed(folder, [text]).vectors[0] for text in TEXTS[:5]]
        assert np.allclose(alone, together[:5], atol=1e-5)
        assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)

    def test_usage_and_guard_tell_what_it_took(self, backend: Backend, embedder: MakeModel) -> None:
        folder = embedder()
        answer = backend.embed(folder, ["ab", "abcd"], request_id="mine")
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4 + 6, 0)
        guard = answer.guard
        assert (guard.request_id, guard.requested_model) == ("mine", folder)
        assert guard.loading > 0 and guard.prefill > 0 and guard.seed is None
        assert guard.fingerprint == backend.models()[0].fingerprint
        assert kinds(backend, "mine") == ["request.queued", "request.started", "request.finished"]
        assert "10 prompt tokens" in backend.explain("mine")

    def test_an_empty_text_has_a_vector_too(self, backend: Backend, embedder: MakeModel) -> None:
        answer = backend.embed(embedder(), ["", "x"])
        assert answer.usage.prompt_tokens == 2 + 3
        assert np.isfinite(answer.vectors).all()

    def test_progress_counts_texts(self, backend: Backend, embedder: MakeModel) -> None:
        told: list[Progress] = []
        backend.embed(embedder(), TEXTS, on_progress=told.append)
        done = [progress for progress in told if progress.stage == "embed"]
        assert [p.done for p in done] == sorted(p.done for p in done)
        assert (done[-1].done, done[-1].total) == (len(TEXTS), len(TEXTS))
        assert len(done) > 1
        assert "load" in {progress.stage for progress in told}

    def test_a_long_text_is_cut_only_when_asked(
        self, backend: Backend, embedder: MakeModel
    ) -> None:
        folder = embedder(context_window=16)
        with pytest.raises(
            InvalidRequest, match=r"texts\[1\] has 32 tokens; .* takes 16"
        ) as caught:
            backend.embed(folder, ["short", "x" * 30])
        assert "truncate=True" in caught.value.hint
        cut = backend.embed(folder, ["x" * 30, "short"], truncate=True)
        assert cut.usage.prompt_tokens == 16 + 7
        whole = backend.embed(folder, ["x" * 14, "short"])  # what was left of it
        assert np.allclose(cut.vectors, whole.vectors, atol=1e-5)

    def test_a_text_longer_than_a_micro_batch_goes_alone(
        self, make_backend: MakeBackend, embedder: MakeModel
    ) -> None:
        folder = embedder(context_window=512)
        backend = make_backend(prefill_step_size=32)
        long = "y" * 500
        vector = backend.embed(folder, ["x", long, "z"]).vectors[1]
        assert np.allclose(vector, bert_vector(folder, backend.tokens(folder, long)), atol=1e-4)

    def test_nan_is_an_error(self, backend: Backend, embedder: MakeModel) -> None:
        with pytest.raises(NonFiniteLogits, match="not finite"):
            backend.embed(embedder(nan=True), ["x"])


class TestOtherArchitectures:
    """mlx-embeddings has more types than BERT; made by itself, on the MLX thread."""

    @pytest.mark.parametrize(
        ("kind", "config"),
        [
            ("xlm-roberta", {"max_position_embeddings": 66, "pad_token_id": 0}),
            ("modernbert", {"max_position_embeddings": 64, "architectures": ["ModernBertModel"]}),
            (
                "qwen3",
                {
                    "max_position_embeddings": 64,
                    "num_key_value_heads": 2,
                    "head_dim": 8,
                    "rms_norm_eps": 1e-6,
                    "rope_theta": 10000.0,
                },
            ),
        ],
    )
    def test_it_embeds(
        self, backend: Backend, tmp_path: Path, embedder: MakeModel, kind: str, config: dict
    ) -> None:
        folder = tmp_path / kind
        backend.run(lambda: make_by_itself(folder, Path(embedder()), kind, config))
        together = backend.embed(str(folder), TEXTS[:20]).vectors
        assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
        ids = [backend.tokens(str(folder), text) for text in TEXTS[:4]]
        if kind == "qwen3":  # a language model's tokens() are those of its own task
            ids = [backend.tokens(embedder(), text) for text in TEXTS[:4]]
        alone = backend.run(lambda: vectors_by_itself(folder, ids))
        assert np.allclose(together[:4], alone, atol=1e-4)


def make_by_itself(folder: Path, tokenizer: Path, kind: str, config: dict[str, Any]) -> None:
    """Write a model of mlx-embeddings with random weights, and another's tokenizer."""
    import importlib
    import json
    import shutil

    import mlx.core as mx
    from mlx.utils import tree_flatten

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    config = {
        "model_type": kind,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "vocab_size": 200,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(config))
    module = importlib.import_module(f"mlx_embeddings.models.{kind.replace('-', '_')}")
    model = module.Model(module.ModelArgs.from_dict(config))
    parameters: Any = tree_flatten(model.parameters())
    keys = mx.random.split(mx.random.key(0), len(parameters))
    weights = {
        # ModernBERT's folders have no "model." before their names.
        name.removeprefix("model.") if kind == "modernbert" else name: value
        if "norm" in name.lower()
        else mx.random.normal(value.shape, key=key) * 0.3
        for (name, value), key in zip(parameters, keys, strict=True)
    }
    mx.save_safetensors(str(folder / "model.safetensors"), weights)


def vectors_by_itself(folder: Path, texts: list[list[int]]) -> list[list[float]]:
    """What plain mlx-embeddings makes of texts, one after the other."""
    import mlx.core as mx
    from mlx_embeddings.utils import load_model  # type: ignore[import-untyped]  # has none

    model = load_model(folder)
    outputs = (model(mx.array([ids]), attention_mask=mx.array([[1] * len(ids)])) for ids in texts)
    return [output.text_embeds[0].tolist() for output in outputs]


def peaks_of(folder: Path, shapes: list[tuple[int, int]]) -> list[int]:
    """Bytes that plain mlx-embeddings takes beyond weights, for (texts, tokens of each)."""
    import mlx.core as mx
    from mlx_embeddings.utils import load_model

    model, peaks = load_model(folder), []
    for shape in shapes:
        ids = mx.full(shape, 5)
        mx.eval(ids)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(model(ids, attention_mask=mx.ones(shape, dtype=mx.int32)).text_embeds)
        peaks.append(int(mx.get_peak_memory() - before))
        mx.clear_cache()
    return peaks


@pytest.mark.parametrize("isolation", ["thread"])  # it is of the model's own step
@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 256, "layers": 6}])
def test_a_step_takes_what_is_predicted(backend: Backend, embedder: MakeModel, sizes: dict) -> None:
    folder = Path(embedder(context_window=1024, **sizes))
    shapes = [(1, 16), (8, 16), (1, 128), (1, 1000)]
    files = verify(ModelSpec(name="e", kind="folder", location=str(folder), task="embed"), folder)
    footprint = predict(files)
    assert (footprint.kv_bytes(1000), footprint.state_bytes) == (0, 0)
    for (texts, tokens), peak in zip(
        shapes, backend.run(lambda: peaks_of(folder, shapes)), strict=True
    ):
        predicted = footprint.prefill_bytes(texts * tokens, context_tokens=tokens)
        assert peak <= predicted <= 8 * peak


class TestBadInput:
    @pytest.mark.parametrize(
        ("texts", "message"),
        [
            ("one", "texts is a string"),
            (None, "texts is a NoneType"),
            ({"a": 1}, "texts is a dict"),
            ([], "empty list"),
            ([1], r"texts\[0\] is a int"),
            (["a", None], r"texts\[1\] is a NoneType"),
            (["a", b"b"], r"texts\[1\] is a bytes"),
            (["a", "\ud800"], r"texts\[1\] is not valid Unicode"),
            (["a"] * 10_001, "10001 items; one request takes 10000"),
            (["a" * 1_000_000] * 68, "characters in all"),
        ],
    )
    def test_texts(self, backend: Backend, embedder: MakeModel, texts: Any, message: str) -> None:
        with pytest.raises(InvalidRequest, match=message):
            backend.embed(embedder(), texts)
        assert backend.models() == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"truncate": "yes"}, "truncate"), ({"timeout": -1}, "timeout")],
    )
    def test_options(
        self, backend: Backend, embedder: MakeModel, options: dict, message: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=message):
            backend.embed(embedder(), ["x"], **options)

    def test_a_name_that_is_in_use(self, backend: Backend, tiny: MakeModel) -> None:
        with backend.stream(tiny(), "Hi", max_tokens=2000, request_id="mine") as stream:
            next(stream)
            with pytest.raises(InvalidRequest, match="under way"):
                backend.embed(tiny(architecture="qwen3"), ["x"], request_id="mine")

    def test_generate_says_to_embed(self, backend: Backend, embedder: MakeModel) -> None:
        with pytest.raises(ModelUnsupported, match="cannot generate") as caught:
            backend.generate(embedder(), "Hi")
        assert "embed()" in caught.value.hint

    def test_embed_says_to_generate(self, backend: Backend, tiny: MakeModel) -> None:
        with pytest.raises(ModelUnsupported, match="cannot embed") as caught:
            backend.embed(tiny(), ["Hi"])
        assert "generate()" in caught.value.hint

    def test_weights_that_do_not_fit(self, backend: Backend, embedder: MakeModel) -> None:
        folder = Path(embedder(seed=5))
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"hidden_size": 32', '"hidden_size": 64'))
        with pytest.raises(ModelInvalid, match="do not fit"):
            backend.embed(str(folder), ["x"])
        (folder / "config.json").write_text(text)
        assert backend.embed(str(folder), ["x"]).vectors.shape == (1, 32)

    def test_a_bad_request_leaves_the_others_alone(
        self, backend: Backend, embedder: MakeModel
    ) -> None:
        folder = embedder()
        with ThreadPoolExecutor(8) as pool:
            calls = [
                pool.submit(backend.embed, folder, ["x" * 100] if i % 2 else TEXTS)
                for i in range(8)
            ]
        assert [type(call.exception()) for call in calls] == [type(None), InvalidRequest] * 4


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
            wait_until(refused)
            assert backend.embed(folder, ["z"]).vectors.shape == (1, 32)  # it is not held up
            backend.cancel("first")
            assert isinstance(call.exception(PATIENCE), (RequestCancelled, QueueFull))
        assert backend.embed(folder, huge[:1], truncate=True).usage.prompt_tokens == 128
