"""KV caches of prompts that begin alike: found, bounded, never of another model."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend, Result
from mlx_guarded_llm.models import Progress
from mlx_guarded_llm.testing.tiny import make_tiny_model
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import active_memory, tokens_of

SYSTEM = {"role": "system", "content": "You are a very patient assistant. " * 3}


def turns(backend: Backend, model: str, count: int = 3) -> list[Result]:
    """A conversation, each turn with all that came before."""
    messages: list[dict[str, Any]] = [SYSTEM]
    results = []
    for n in range(count):
        messages.append({"role": "user", "content": f"Question {n}?"})
        results.append(backend.generate(model, messages, max_tokens=12, logprobs=True))
        messages.append({"role": "assistant", "content": results[-1].text})
    return results


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_oss"])
@pytest.mark.parametrize("prefill_step_size", [None, 16])
def test_the_second_turn_goes_on_from_the_first(
    make_backend: MakeBackend, tiny: MakeModel, architecture: str, prefill_step_size: int | None
) -> None:
    model = tiny(architecture=architecture)
    cached = turns(make_backend(prefill_step_size=prefill_step_size), model)
    fresh = turns(make_backend(prefill_step_size=prefill_step_size, prefix_cache=0), model)
    assert [tokens_of(result) for result in cached] == [tokens_of(result) for result in fresh]
    assert [result.usage.cached_tokens for result in fresh] == [0, 0, 0]
    assert cached[0].usage.cached_tokens == 0
    system = len(SYSTEM["content"])
    assert all(result.usage.cached_tokens > system for result in cached[1:])
    assert all(r.usage.cached_tokens < r.usage.prompt_tokens for r in cached)


@pytest.mark.parametrize("architecture", ["gemma2", "mamba"])
def test_decoded_in_turn_too(make_backend: MakeBackend, tiny: MakeModel, architecture: str) -> None:
    model = tiny(architecture=architecture)
    cached, fresh = turns(make_backend(), model), turns(make_backend(prefix_cache=0), model)
    assert [tokens_of(result) for result in cached] == [tokens_of(result) for result in fresh]


def test_another_conversation_shares_the_system_prompt(backend: Backend, tiny: MakeModel) -> None:
    for question, least in (("What?", 0), ("Who are you?", len(SYSTEM["content"]))):
        messages = [SYSTEM, {"role": "user", "content": question}]
        usage = backend.generate(tiny(), messages, max_tokens=4).usage
        assert least <= usage.cached_tokens < usage.prompt_tokens


def test_the_same_prompt_again(backend: Backend, tiny: MakeModel) -> None:
    first, second = (backend.generate(tiny(), "Hello there", max_tokens=8) for _ in range(2))
    assert first.text == second.text
    assert second.usage.cached_tokens == second.usage.prompt_tokens - 1


def test_several_at_once_on_one_prefix(backend: Backend, tiny: MakeModel) -> None:
    def ask(n: int) -> Any:
        messages = [SYSTEM, {"role": "user", "content": f"Question {n}?"}]
        return backend.stream(tiny(), messages, max_tokens=8, logprobs=True)

    alone = [[p.token for c in ask(n) for p in c.logprobs] for n in range(4)]
    at_once = [ask(n) for n in range(4)]
    assert [[p.token for c in stream for p in c.logprobs] for stream in at_once] == alone


def test_bounded_in_bytes(make_backend: MakeBackend, tiny: MakeModel) -> None:
    bound = 400_000  # a token of this model takes 512 bytes, in steps of 256 tokens
    backend = make_backend(prefix_cache=bound)
    backend.load(tiny())
    before = backend.run(active_memory)
    sizes = []
    for n in range(12):
        backend.generate(tiny(), f"{n} " * 40, max_tokens=2)
        sizes.append(backend.run(active_memory) - before)
    assert max(sizes) <= bound
    assert max(sizes) > 0, "nothing was kept, so nothing was tested"


def test_none_is_kept_with_zero(make_backend: MakeBackend, tiny: MakeModel) -> None:
    backend = make_backend(prefix_cache=0)
    backend.load(tiny())
    before = backend.run(active_memory)
    for _ in range(3):
        assert backend.generate(tiny(), "Hello" * 30, max_tokens=2).usage.cached_tokens == 0
    assert backend.run(active_memory) <= before + 4096


def test_the_bound_is_of_all_models(make_backend: MakeBackend, tiny: MakeModel) -> None:
    bound = 400_000
    backend = make_backend(prefix_cache=bound)
    models = [tiny(seed=seed) for seed in range(3)]
    for model in models:
        backend.load(model)
    before = backend.run(active_memory)
    for n in range(9):
        backend.generate(models[n % 3], f"{n} " * 40, max_tokens=2)
        assert backend.run(active_memory) - before <= bound


def test_a_reloaded_model_meets_no_old_entry(backend: Backend, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", seed=1)
    prompt = "The same prompt for both weights"
    old = backend.generate(str(folder), prompt, max_tokens=12)
    assert backend.unload(str(folder))
    shutil.rmtree(folder)
    make_tiny_model(folder, seed=2)
    new = backend.generate(str(folder), prompt, max_tokens=12)
    assert new.usage.cached_tokens == 0
    assert new.text != old.text and new.guard.fingerprint != old.guard.fingerprint
    other = make_tiny_model(tmp_path / "other", seed=2)
    assert backend.generate(str(other), prompt, max_tokens=12).text == new.text


def test_a_cancelled_generation_leaves_the_cache_sound(backend: Backend, tiny: MakeModel) -> None:
    prompt = "A prompt that is asked three times"
    expected = backend.generate(tiny(), prompt, max_tokens=20, logprobs=True)
    with backend.stream(tiny(), prompt + " over", max_tokens=500) as stream:
        next(stream)
    again = backend.generate(tiny(), prompt, max_tokens=20, logprobs=True)
    assert tokens_of(again) == tokens_of(expected)


@pytest.mark.parametrize(
    ("architecture", "neighbours"), [("llama", 0), ("llama", 2), ("gemma3_text", 0), ("gpt_oss", 2)]
)
def test_what_a_cancelled_prompt_had_computed_is_kept(
    make_backend: MakeBackend, tiny: MakeModel, architecture: str, neighbours: int
) -> None:
    """So a client that times out and asks again gets on, instead of starting over."""
    model = tiny(architecture=architecture, context_window=8192)
    prompt = "Hello there. " * 400
    fresh = make_backend(prefix_cache=0).generate(model, prompt, max_tokens=4, logprobs=True)
    backend = make_backend(prefill_step_size=64)
    beside = [backend.stream(model, f"{n}", max_tokens=4000) for n in range(neighbours)]
    for stream in beside:
        next(stream)
    asked, done = 0, 0
    while done == 0:
        asked += 1
        seen = threading.Event()

        def hear(progress: Progress, seen: threading.Event = seen) -> None:
            if progress.stage == "prefill" and progress.done > 200:
                seen.set()

        stream = backend.stream(model, prompt, max_tokens=4, on_progress=hear)
        assert seen.wait(60)
        stream.close()
        again = backend.generate(model, prompt, max_tokens=4, logprobs=True)
        done = again.usage.cached_tokens
        assert asked < 5
    assert 200 < done < fresh.usage.prompt_tokens
    assert tokens_of(again) == tokens_of(fresh)


@pytest.mark.parametrize("neighbours", [0, 2])
def test_what_a_cancelled_answer_had_computed_is_kept(
    make_backend: MakeBackend, tiny: MakeModel, neighbours: int
) -> None:
    model, prompt = tiny(context_window=8192), "Hello there. " * 20
    fresh = make_backend(prefix_cache=0).generate(model, prompt, max_tokens=12, logprobs=True)
    backend = make_backend()
    beside = [backend.stream(model, f"{n}", max_tokens=4000) for n in range(neighbours)]
    for stream in beside:
        next(stream)
    with backend.stream(model, prompt, max_tokens=2000) as stream:
        for _ in range(6):
            next(stream)
    again = backend.generate(model, prompt, max_tokens=12, logprobs=True)
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    assert tokens_of(again) == tokens_of(fresh)
