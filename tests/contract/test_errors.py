"""What is wrong with a call is told by our own typed errors, through every face."""

from __future__ import annotations

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.errors import (
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    NoChatTemplate,
    RequestTimeout,
)
from tests.conftest import MakeModel

from ._each import each_face, each_library
from ._faces import Face


@each_face
async def test_an_unknown_model_is_no_other_model(face: Face, backend: Backend) -> None:
    with pytest.raises(ModelNotFound, match="no-such-model") as caught:
        await face.ask(face.make(backend, "/no-such-model"), "Hi")
    assert caught.value.guard is not None
    assert [attempt.outcome for attempt in caught.value.guard.attempts] == ["error"]


@each_face
async def test_a_prompt_that_is_too_long_says_by_how_much(
    face: Face, backend: Backend, tiny: MakeModel
) -> None:
    llm = face.make(backend, tiny(context_window=64))
    with pytest.raises(ContextOverflow) as caught:
        await face.ask(llm, "word " * 100)
    assert caught.value.prompt_tokens > caught.value.context_window == 64


@each_face
@pytest.mark.parametrize(
    ("option", "value"), [("temperature", -1.0), ("max_tokens", 0), ("stop", [""]), ("sed", 7)]
)
async def test_a_bad_option_is_an_error_and_reaches_no_model(
    face: Face, backend: Backend, tiny: MakeModel, option: str, value: object
) -> None:
    with pytest.raises(InvalidRequest, match=option):
        await face.ask(face.make(backend, tiny()), "Hi", **{option: value})
    assert backend.models() == []


@each_face
async def test_a_timeout_is_ours_and_pythons_own(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    llm = face.make(backend, scripted("and so on and on. ", loop=True), max_tokens=1900)
    with pytest.raises(RequestTimeout) as caught:
        await face.ask(llm, "Talk.", timeout=0.05)
    assert isinstance(caught.value, TimeoutError)


@each_library
async def test_messages_for_a_model_without_a_template_are_an_error(
    face: Face, backend: Backend, tiny: MakeModel
) -> None:
    llm = face.make(backend, tiny(chat_template=None))
    with pytest.raises(NoChatTemplate):
        await face.ask(llm, [{"role": "user", "content": "Hi"}])


@each_library
async def test_a_conversation_without_messages_is_an_error(
    face: Face, backend: Backend, tiny: MakeModel
) -> None:
    with pytest.raises(InvalidRequest):
        await face.ask(face.make(backend, tiny()), [])
