"""Embedding models in the engine: right vectors, within the bytes predicted, or an error."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_guarded_llm import Backend, ModelSpec, Progress
from mlx_guarded_llm.errors import InvalidRequest, ModelInvalid, ModelUnsupported, NonFiniteLogits
from mlx_guarded_llm.memory.footprint import predict
from mlx_guarded_llm.models import verify
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import wait_until
from tests.engine._bert import bert_vector
from tests.engine._embed import TEXTS, kinds


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
        # The callback's thread may be behind, and then is told the newest only.
        wait_until(lambda: ("embed", len(TEXTS)) in {(p.stage, p.done) for p in told})
        done = [progress for progress in told if progress.stage == "embed"]
        assert [p.done for p in done] == sorted(p.done for p in done)
        assert {p.total for p in done} == {len(TEXTS)}
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


def peaks_of(folder: Path, shapes: list[tuple[int, int]]) -> list[int]:
    """Bytes that plain mlx-embeddings takes beyond weights, for (texts, tokens of each)."""
    import mlx.core as mx
    from mlx_embeddings.utils import load_model  # type: ignore[import-untyped]  # has none

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
