"""Token ids of a prompt, and the card of a model: without any weights."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import (
    BackendClosed,
    InvalidRequest,
    ModelNotFound,
    NoChatTemplate,
    RequestTimeout,
)
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events, wait_for

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("prompt", ["Hi", CHAT], ids=["text", "chat"])
def test_they_are_what_generate_counts(backend: Backend, tiny: MakeModel, prompt: Any) -> None:
    tokens = backend.tokens(tiny(), prompt)
    assert backend.models() == [] and not events(backend, "load.")
    answer = backend.generate(tiny(), prompt, max_tokens=1)
    assert answer.usage.prompt_tokens == len(tokens) > 2


def test_tools_and_thinking_count(backend: Backend, tiny: MakeModel) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    model = tiny(tools=True, thinking=True)
    plain = backend.tokens(model, CHAT)
    assert len(backend.tokens(model, CHAT, tools=tools)) > len(plain)
    assert backend.tokens(model, CHAT, thinking=False) != plain


def test_plain_text_with_and_without_special_tokens(
    backend: Backend, tiny: MakeModel, embedder: MakeModel
) -> None:
    assert backend.tokens(tiny(), "ab", raw=True) == [97, 98]  # it has none
    whole = backend.tokens(embedder(), "ab", raw=True)
    alone = backend.tokens(embedder(), "ab", raw=True, special_tokens=False)
    assert whole[1:-1] == alone and len(alone) == 2
    assert backend.tokens(embedder(), "ab") == whole  # as `embed` gets it
    assert backend.tokens(tiny(), "", raw=True, special_tokens=False) == []


def test_a_text_beyond_the_window_is_counted(backend: Backend, tiny: MakeModel) -> None:
    text = "x" * 5000
    assert len(backend.tokens(tiny(), text, raw=True)) == 5000
    assert len(backend.tokens(tiny(), text)) > 5000


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("", {}, InvalidRequest, "empty"),
        (3, {}, InvalidRequest, "prompt is a int"),
        ("\ud800", {"raw": True, "special_tokens": False}, InvalidRequest, "Unicode"),
        ("x", {"special_tokens": False}, InvalidRequest, "plain text"),
        (CHAT, {"raw": True, "special_tokens": False}, InvalidRequest, "plain text"),
        ("x", {"max_tokens": 3}, InvalidRequest, "max_tokens has nothing to do"),
        ("x", {"colour": "red"}, InvalidRequest, "unknown option"),
        ("x", {"timeout": -1}, InvalidRequest, "timeout"),
    ],
)
def test_bad_input(
    backend: Backend,
    tiny: MakeModel,
    prompt: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        backend.tokens(tiny(), prompt, **options)


def test_models_that_cannot(backend: Backend, tiny: MakeModel) -> None:
    with pytest.raises(ModelNotFound):
        backend.tokens("nobody-has-this", "Hi")
    with pytest.raises(NoChatTemplate):
        backend.tokens(tiny(chat_template=None), CHAT)


def test_beside_a_generation_and_from_many_threads(backend: Backend, tiny: MakeModel) -> None:
    with backend.stream(tiny(), "Hi", max_tokens=1000) as stream, ThreadPoolExecutor(8) as pool:
        next(stream)
        counts = pool.map(lambda n: len(backend.tokens(tiny(), "x" * n, raw=True)), range(1, 40))
        assert list(counts) == list(range(1, 40))
        assert next(stream).finish_reason is None


async def test_without_blocking_the_event_loop(backend: Backend, tiny: MakeModel) -> None:
    asked = (backend.atokens(tiny(), "x" * n, raw=True) for n in range(1, 10))
    assert [len(tokens) for tokens in await asyncio.gather(*asked)] == list(range(1, 10))


def test_the_deadline_holds(backend: Backend, tiny: MakeModel) -> None:
    with pytest.raises(RequestTimeout):
        backend.tokens(tiny(), "Hi", timeout=0.0)
    assert backend.tokens(tiny(), "Hi")


def test_after_close(make_backend: MakeBackend, tiny: MakeModel) -> None:
    backend = make_backend()
    assert backend.tokens(tiny(), "Hi")
    backend.close()
    with pytest.raises(BackendClosed):
        backend.tokens(tiny(), "Hi")


def test_a_card_needs_no_engine(backend: Backend, tiny: MakeModel, tmp_path: Path) -> None:
    card = backend.card(tiny())
    assert card is not None and card.chat and card.context_window == 2048
    assert backend.card(str(tmp_path / "nowhere")) is None
    assert backend.events() == ()
    assert backend.generate(tiny(), "Hi", max_tokens=1).guard.fingerprint == card.fingerprint
    wait_for(backend, "request.finished")
