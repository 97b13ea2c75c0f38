"""A model with a draft, as its callers see it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend, GuardedLLM
from mlx_guarded_llm.errors import DraftMismatch, InvalidRequest, MemoryRefused, ModelNotFound
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events, tokens_of

SAMPLED: dict[str, Any] = {"max_tokens": 60, "temperature": 0.8, "seed": 5, "logprobs": True}


def test_the_answer_is_that_of_the_model_alone(backend: Backend, tiny: MakeModel) -> None:
    alone = backend.generate(tiny(), "Hello", **SAMPLED)
    drafted = backend.generate(tiny(), "Hello", draft=tiny(seed=3), **SAMPLED)
    assert (drafted.text, drafted.logprobs) == (alone.text, alone.logprobs)
    assert 0 <= drafted.usage.accepted_tokens <= drafted.usage.drafted_tokens > 0
    assert alone.usage.drafted_tokens == 0
    assert drafted.guard.fingerprint == alone.guard.fingerprint, "it is the same model"


def test_the_prompt_is_looked_up(backend: Backend, scripted: MakeModel) -> None:
    model = scripted("The quick brown fox jumps over the lazy dog. ", loop=True)
    alone = backend.generate(model, "Hello", max_tokens=80)
    drafted = backend.generate(model, "Hello", max_tokens=80, draft="prompt")
    assert drafted.text == alone.text
    # What it proposes is what the script goes on with.
    assert drafted.usage.accepted_tokens == drafted.usage.drafted_tokens > 0


def test_a_stop_string_ends_it(backend: Backend, scripted: MakeModel) -> None:
    model = scripted("The quick brown fox jumps over the lazy dog. ", loop=True)
    options: dict[str, Any] = {"max_tokens": 300, "stop": ["dog. The quick brown f"]}
    alone = backend.generate(model, "Hello", **options)
    drafted = backend.generate(model, "Hello", draft="prompt", **options)
    assert drafted.text == alone.text and drafted.finish_reason == "stop"
    assert drafted.usage.completion_tokens == alone.usage.completion_tokens


def test_the_next_turn_finds_the_last(backend: Backend, tiny: MakeModel) -> None:
    model = tiny() + f"[draft={tiny()}]"
    first = backend.generate(model, "Hello", max_tokens=30)
    turns = [("user", "Hello"), ("assistant", first.text), ("user", "And then?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    second = backend.generate(model, messages, max_tokens=30, logprobs=True)
    alone = backend.generate(tiny(), messages, max_tokens=30, logprobs=True)
    assert tokens_of(second) == tokens_of(alone)
    assert second.usage.cached_tokens > first.usage.prompt_tokens


def test_a_grammar_is_held_to(backend: Backend, tiny: MakeModel) -> None:
    pytest.importorskip("llguidance")
    options: dict[str, Any] = {"regex": "(yes|no)+", "max_tokens": 12}
    drafted = backend.generate(tiny(), "Hello", draft=tiny(seed=3), **options)
    assert drafted.text == backend.generate(tiny(), "Hello", **options).text
    assert drafted.usage.drafted_tokens == 0


def test_what_one_call_means_and_what_a_load_says(backend: Backend, tiny: MakeModel) -> None:
    model, draft = tiny(), tiny(seed=3)
    info = backend.load(model, draft=draft)
    assert info.name == model
    answer = backend.generate(model, "Hello", max_tokens=20)
    assert answer.usage.drafted_tokens > 0
    assert [each.name for each in backend.models()] == [model]
    llm = GuardedLLM(backend, model, draft=draft)
    assert llm.generate("Hello", max_tokens=20).text == answer.text
    assert len(events(backend, "load.finished")) == 1


def test_in_a_file_of_aliases(
    make_backend: MakeBackend, tiny: MakeModel, aliases: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny(seed=3), tmp_path / "small")
    # The folder counts from the file, and the draft of a draft is not used.
    file = aliases(
        large={"model": tiny(), "draft": "small-one"},
        also={"model": tiny(), "draft": "small"},
        **{"small-one": {"model": "small", "draft": "large"}},
    )
    backend = make_backend(aliases=file)
    for name in ("large", "also"):
        assert backend.generate(name, "Hello", max_tokens=20).usage.drafted_tokens > 0


class TestRefused:
    def test_other_tokens(self, backend: Backend, tiny: MakeModel) -> None:
        for draft in (tiny(tokenizer="bpe"), tiny(thinking=True)):
            with pytest.raises(DraftMismatch, match="tokens differ") as error:
                backend.generate(tiny(), "Hello", draft=draft)
            assert 'draft="prompt"' in error.value.hint
        assert backend.generate(tiny(), "Hello", max_tokens=2).usage.completion_tokens == 2

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"draft": "nowhere"}, ModelNotFound, "nowhere"),
            ({"draft": ""}, InvalidRequest, "draft"),
            ({"draft": 7}, InvalidRequest, "draft"),
            ({"draft": "prompt", "kv_bits": 8}, InvalidRequest, "kv_bits"),
        ],
    )
    def test_what_makes_no_sense(
        self,
        backend: Backend,
        tiny: MakeModel,
        options: dict[str, Any],
        error: type[Exception],
        words: str,
    ) -> None:
        with pytest.raises(error, match=words):
            backend.load(tiny(), **options)

    def test_for_embeddings(self, backend: Backend, embedder: MakeModel) -> None:
        with pytest.raises(InvalidRequest, match="draft"):
            backend.load(embedder(), draft="prompt")


class TestMemory:
    def test_both_are_counted(self, backend: Backend, tiny: MakeModel) -> None:
        alone = backend.load(tiny())
        both = backend.load(tiny() + "[]", draft=tiny(hidden_size=256, layers=4))
        small = backend.load(tiny(hidden_size=256, layers=4))
        assert both.memory_bytes == pytest.approx(alone.memory_bytes + small.memory_bytes, rel=0.1)

    def test_both_must_fit(self, make_backend: MakeBackend, tiny: MakeModel) -> None:
        draft = tiny(hidden_size=512, layers=4)
        weights = sum(file.stat().st_size for file in Path(draft).glob("*.safetensors"))
        backend = make_backend(memory_budget=weights, prefix_cache=0)
        backend.load(tiny())
        with pytest.raises(MemoryRefused):
            backend.load(tiny(), draft=draft)

    def test_both_are_given_back(self, backend: Backend, tiny: MakeModel) -> None:
        backend.load(tiny(), draft=tiny(hidden_size=256))
        (loaded,) = events(backend, "load.finished")
        backend.unload(tiny())
        (unloaded,) = events(backend, "unload.finished")
        assert unloaded.details["freed"] >= 0.9 * loaded.details["bytes"]


@pytest.mark.parametrize("architecture", ["mamba", "gemma2"])
def test_a_model_that_cannot_be_drafted_says_so(
    backend: Backend, tiny: MakeModel, architecture: str
) -> None:
    model = tiny(architecture=architecture)
    answer = backend.generate(model, "Hello", max_tokens=12, draft="prompt")
    assert answer.text == backend.generate(model, "Hello", max_tokens=12).text
    loaded = events(backend, "load.finished")
    assert "caches" in loaded[0].details["undrafted"] and "undrafted" not in loaded[1].details
    assert "without its draft: the caches" in backend.explain(answer.guard.request_id)


def abort_after_some_tokens() -> None:
    """For `run`: this process dies when it has passed on so many tokens."""
    from mlx_guarded_llm.engine.decode.batch import ContinuousBatch
    from mlx_guarded_llm.engine.decode.decoder import Token

    step, tokens = ContinuousBatch.step, 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal tokens
        if tokens > 25:
            os.abort()
        updates = step(*args, **options)
        tokens += sum(isinstance(update, Token) for update in updates)
        return updates

    setattr(ContinuousBatch, "step", counted)  # noqa: B010 - mypy takes no assignment to a method


class TestDeath:
    pytestmark = pytest.mark.slow

    @pytest.fixture
    def isolation(self) -> str:
        return "process"

    @pytest.fixture
    def own_worker(self) -> bool:
        return True

    def test_an_answer_goes_on_behind_its_last_token(
        self, backend: Backend, tiny: MakeModel
    ) -> None:
        options: dict[str, Any] = {"max_tokens": 60, "temperature": 0.8, "seed": 5}
        alone = backend.generate(tiny(), "Hello", **options)
        backend.load(tiny(), draft=tiny(seed=3))
        backend.run(abort_after_some_tokens)
        resumed = backend.generate(tiny(), "Hello", **options)
        assert resumed.text == alone.text
        assert resumed.guard.resumed and resumed.usage.drafted_tokens > 0
