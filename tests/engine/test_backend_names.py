"""Load options belong to every call, and every name that is shown means one model."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from mlx_guarded_llm import Backend, GuardedLLM, LocalModel
from mlx_guarded_llm.errors import ContextOverflow, InvalidRequest, ModelInvalid
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import PATIENCE, events


@pytest.fixture(params=["thread"])  # names are given in the parent, wherever the engine is
def isolation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def windows(backend: Backend) -> dict[str, int]:
    """Names and context windows of the models that `models()` tells of."""
    return {info.name: info.context_window for info in backend.models()}


def window(backend: Backend, model: str, **options: Any) -> int:
    """The context window of the model that answers a call."""
    with pytest.raises(ContextOverflow) as caught:
        backend.generate(model, "Hello " * 2000, max_tokens=2, **options)
    return caught.value.context_window


def test_a_load_with_options_says_what_the_name_means(backend: Backend, tiny: MakeModel) -> None:
    name = tiny()
    info = backend.load(name, context_window=64)
    assert (info.name, info.context_window, info.options) == (name, 64, {"context_window": 64})
    assert window(backend, name) == 64
    assert backend.generate(name, "Hello", max_tokens=2).guard.served_model == name
    assert windows(backend) == {name: 64}
    assert backend.load(name).context_window == 64, "a load by the name alone is a call like others"
    card = backend.card(name)
    assert card is not None and card.context_window == 64
    assert len(events(backend, "load.finished")) == 1
    assert backend.unload(name) and windows(backend) == {}
    assert window(backend, name) > 64, "its meaning ended with it"


def test_it_outlives_an_eviction(make_backend: MakeBackend, tiny: MakeModel) -> None:
    backend = make_backend(keep_alive=0)
    backend.load(tiny(), context_window=64)
    for _ in range(2):
        backend.generate(tiny(), "Hello", max_tokens=2)
        assert window(backend, tiny()) == 64


def test_a_call_with_options_gets_exactly_those(backend: Backend, tiny: MakeModel) -> None:
    name = tiny()
    backend.generate(name, "Hello", max_tokens=2)
    plain = windows(backend)[name]
    full = f"{name}[context_window=64]"
    result = backend.generate(name, "Hello", max_tokens=2, context_window=64)
    assert result.guard.served_model == full
    assert windows(backend) == {name: plain, full: 64}
    assert window(backend, name) == plain, "the bare name means what it did"
    assert (window(backend, full), window(backend, name, context_window=96)) == (64, 96)
    assert backend.load(full).name == full, "a name is no declaration"
    assert backend.unload(full) and name in windows(backend)


def test_an_option_beside_the_name_wins(backend: Backend, tiny: MakeModel) -> None:
    asked, full = f"{tiny()}[context_window=64]", f"{tiny()}[context_window=96]"
    info = backend.load(asked, context_window=96)
    assert (info.context_window, info.options) == (96, {"context_window": 96})
    guard = backend.generate(asked, "Hello", max_tokens=2, context_window=96).guard
    assert guard.requested_model == full and guard.served_model == tiny()
    assert windows(backend) == {tiny(): 96}
    assert backend.full_name(asked, context_window=96) == full
    for llm in (
        GuardedLLM(backend, asked, context_window=96),
        GuardedLLM(backend, f"{asked}[context_window=96]"),
    ):
        assert llm.model == llm.generate("Hello", max_tokens=2).guard.requested_model == full
    assert backend.unload(asked, context_window=96)


def test_every_shown_name_means_that_one(backend: Backend, tiny: MakeModel) -> None:
    name = tiny()
    backend.generate(name, "Hello", max_tokens=2)
    backend.load(name, context_window=64)
    backend.load(name, context_window=96)
    backend.generate(name, "Hello", max_tokens=2, context_window=128)
    shown = windows(backend)
    assert len(shown) == 4 and shown[name] == 96
    assert shown[f"{name}[context_window=64]"] == 64
    for each, size in shown.items():
        assert window(backend, each) == size
        assert backend.generate(each, "Hello", max_tokens=2).guard.served_model == each
        assert backend.load(each, pin=True).name == each
        assert len(backend.tokens(each, "Hello")) > 0
    assert {info.name for info in backend.models() if info.pinned} == set(shown)
    assert len(events(backend, "load.finished")) == 4, "no other copy was loaded"
    assert backend.unload(f"{name}[]")
    assert windows(backend).keys() == shown.keys() - {f"{name}[]"}
    assert backend.unload(name)
    assert f"{name}[context_window=96]" not in windows(backend)


def test_two_names_of_one_folder(make_backend: MakeBackend, aliases: Any, tiny: MakeModel) -> None:
    backend = make_backend(aliases(alpha={"model": tiny()}, beta={"model": tiny()}))
    backend.load("alpha", context_window=64)
    assert window(backend, "beta") > 64, "the other name keeps its meaning"
    assert backend.generate("ALPHA", "Hello", max_tokens=2).guard.served_model == "alpha"


def answering_window(backend: Backend, model: str, **options: Any) -> int:
    """The window of the model that gave an answer, by where it had to stop."""
    result = backend.generate(model, "Hello", max_tokens=100, **options)
    assert result.finish_reason == "length" and not result.guard.capped
    return result.usage.prompt_tokens + result.usage.completion_tokens


def test_one_name_from_several_threads(backend: Backend, tiny: MakeModel) -> None:
    name, sizes, turns = tiny(), (40, 44, 48, 52), 3
    start = Barrier(len(sizes) + 2)

    def use(size: int) -> None:
        start.wait(PATIENCE)
        for turn in range(turns):
            info = backend.load(name, context_window=size)
            assert info.context_window == size
            assert answering_window(backend, name, context_window=size) == size
            full = f"{name}[context_window={size}]"
            assert answering_window(backend, full) == size
            if turn % 2:
                backend.unload(name, context_window=size)

    def use_bare(take: Callable[[], object]) -> None:
        start.wait(PATIENCE)
        for _ in range(turns):
            take()

    plain = backend.generate(name, "Hello", max_tokens=2).guard.served_model
    assert plain == name

    def ask() -> None:
        result = backend.generate(name, "Hello " * 3, max_tokens=1)
        assert result.guard.requested_model == name

    def give_back() -> None:
        backend.unload(name)
        assert {info.context_window for info in backend.models()} <= {*sizes, whole}

    whole = windows(backend)[name]
    with ThreadPoolExecutor(len(sizes) + 2) as pool:
        running = [pool.submit(use, size) for size in sizes]
        running += [pool.submit(use_bare, take) for take in (ask, give_back)]
        for one in running:
            one.result(PATIENCE)
    for shown, size in windows(backend).items():
        assert window(backend, shown) == size, "what is shown means that one"
    backend.load(name, context_window=64)
    assert window(backend, name) == 64


def test_two_names_of_one_folder_from_two_threads(
    make_backend: MakeBackend, aliases: Any, tiny: MakeModel
) -> None:
    names = {"alpha": 40, "beta": 48}
    backend = make_backend(aliases(**{name: {"model": tiny()} for name in names}))
    start = Barrier(len(names))

    def use(name: str, size: int) -> None:
        start.wait(PATIENCE)
        for _ in range(3):
            assert backend.load(name, context_window=size).context_window == size
            assert answering_window(backend, name) == size
            assert backend.generate(name, "Hello", max_tokens=2).guard.served_model == name
            assert backend.unload(name)

    with ThreadPoolExecutor(len(names)) as pool:
        for one in [pool.submit(use, *item) for item in names.items()]:
            one.result(PATIENCE)
    assert windows(backend) == {}


def test_a_load_that_fails_declares_nothing(
    backend: Backend, tiny: MakeModel, tmp_path: Path
) -> None:
    backend.load(tiny(), context_window=64)
    with pytest.raises(ModelInvalid):
        backend.load(tiny(), adapter_path=tmp_path / "nowhere")
    assert window(backend, tiny()) == 64


def test_paths_and_what_is_not_given(backend: Backend, tiny: MakeModel) -> None:
    result = backend.generate(
        Path(tiny()), "Hello", max_tokens=2, kv_bits=None, seed=None, stop=None, tools=None
    )
    assert result.guard.served_model == result.guard.requested_model == tiny()
    assert backend.unload(Path(tiny()), revision=None)


def test_embeddings_take_them_too(backend: Backend, embedder: MakeModel) -> None:
    name = embedder()
    backend.embed(name, ["a"], context_window=16)
    assert list(windows(backend).values()) == [16]
    with pytest.raises(InvalidRequest, match="kv_bits"):
        backend.embed(name, ["a"], kv_bits=8)


class TestGuardedLLM:
    def test_options_are_the_models_alone(self, backend: Backend, tiny: MakeModel) -> None:
        other = tiny(seed=2)
        llm = GuardedLLM(
            backend,
            tiny(),
            context_window=64,
            max_tokens=2,
            fallbacks=[other, f"{other}[context_window=96]", LocalModel(backend, other, kv_bits=8)],
            on_fallback="mark",
        )
        full = f"{tiny()}[context_window=64]"
        assert llm.model == full
        result = llm.generate("Hello")
        assert not result.guard.fallback and result.guard.served_model == full
        names = [c.name for c in llm._policy.candidates]
        assert names[1:] == [other, f"{other}[context_window=96]", f"{other}[kv_bits=8]"]

    def test_they_are_none_of_a_call(self, backend: Backend, tiny: MakeModel) -> None:
        with pytest.raises(InvalidRequest, match="what a model is loaded with"):
            GuardedLLM(backend, tiny()).generate("Hello", kv_bits=8)
        with pytest.raises(InvalidRequest, match="nothing that"):
            LocalModel(backend, tiny(), temperature=1)
