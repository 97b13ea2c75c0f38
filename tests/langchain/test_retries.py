"""What LangChain makes of our errors, and its models as fallbacks of ours.

The rules of retries and fallbacks are in tests/contract/test_retries.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core import exceptions as theirs
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from langchain_mlx_guarded import ChatMLXGuarded
from mlx_guarded_llm import RetryPolicy
from mlx_guarded_llm.errors import (
    AttemptsExhausted,
    DegradedAnswer,
    EngineDied,
    QueueFull,
)
from mlx_guarded_llm.testing.faulty import FaultyBackend

from .test_chat_models import each_way, way_ainvoke, way_invoke

SOON = RetryPolicy(initial_wait=0, jitter=0)


class Cloud(BaseChatModel):
    """A chat model of another package. It keeps what it was asked."""

    error: Any = None
    answer: Any = "About forty."
    seen: list[Any] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "cloud"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {"ls_provider": "cloud", "ls_model_name": "cloud-1", "ls_model_type": "chat"}

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Any:
        return self.bind(tools=list(tools), tool_choice=tool_choice, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.seen.append((messages, {"stop": stop, **kwargs}))
        if self.error is not None:
            raise self.error
        message = self.answer if isinstance(self.answer, AIMessage) else AIMessage(self.answer)
        return ChatResult(generations=[ChatGeneration(message=message)])


def dead() -> EngineDied:
    return EngineDied("it aborted.")


def make(faults: dict[str, list[Any]], **options: Any) -> tuple[ChatMLXGuarded, FaultyBackend]:
    answers = {"big": "Forty two.", "small": "About forty."}
    backend: Any = FaultyBackend(faults=faults, answers=answers)
    settings: dict[str, Any] = {"retry": SOON, "hold_back": 1000} | options
    return ChatMLXGuarded(model="big", backend=backend, **settings), backend


@each_way
async def test_max_retries_is_the_number_of_further_attempts(ask: Any) -> None:
    for retries in (1, 3):
        chat, backend = make({"big": [dead()] * 9}, retry=None, max_retries=retries)
        chat.retry = RetryPolicy(attempts=chat._policy().attempts, initial_wait=0, jitter=0)
        with pytest.raises(AttemptsExhausted) as caught:
            await ask(chat, "6 * 7?")
        assert len(backend.calls) == retries + 1
        assert isinstance(caught.value, theirs.ModelError)
        assert not caught.value.is_retryable
        assert isinstance(caught.value.__cause__, EngineDied)


@each_way
async def test_without_further_attempts_an_error_is_as_retryable_as_it_came(ask: Any) -> None:
    chat, backend = make({"big": [dead()] * 9}, retry=None, max_retries=0)
    with pytest.raises(EngineDied) as caught:
        await ask(chat, "6 * 7?")
    assert len(backend.calls) == 1
    assert isinstance(caught.value, theirs.ModelError)
    assert caught.value.is_retryable


# ---- any chat model as a fallback ---------------------------------------------------------


@each_way
async def test_a_chat_model_of_another_package_is_a_fallback(ask: Any) -> None:
    cloud = Cloud()
    chat, _ = make({"big": [dead()] * 3}, fallbacks=[cloud], on_fallback="mark")
    history = [
        ("user", "6 * 7?"),
        AIMessage("", tool_calls=[{"name": "mul", "args": {"a": 6}, "id": "c1"}]),
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]
    message = await ask(chat, history, stop=["\n"])
    assert message.content == "About forty."
    guard = message.response_metadata["guard"]
    assert guard["served_model"] == "cloud-1"
    assert guard["fallback"] is True
    assert guard["attempts"][-1]["model"] == "cloud-1"
    ((messages, options),) = cloud.seen
    assert [m.type for m in messages] == ["human", "ai", "tool"]
    assert messages[1].tool_calls[0]["args"] == {"a": 6}
    assert options == {"stop": ["\n"]}


@each_way
async def test_its_tools_and_calls_are_translated(ask: Any) -> None:
    call = {"name": "mul", "args": {"a": 6}, "id": "c9", "type": "tool_call"}
    cloud = Cloud(answer=AIMessage("", tool_calls=[call]))
    chat, _ = make({"big": [dead()] * 3}, fallbacks=[cloud], on_fallback="mark")

    def mul(a: int) -> int:
        """Multiply."""
        return a

    message = await ask(chat.bind_tools([mul], tool_choice="any"), "6 * 7?")
    assert message.tool_calls == [call]
    options = cloud.seen[0][1]
    assert options["tool_choice"] == "any"
    assert options["tools"][0]["function"]["name"] == "mul"
    named = chat.bind_tools([mul], tool_choice="mul")
    chat.backend = make({"big": [dead()] * 3})[0].backend
    await ask(chat.bind(**named.kwargs), "6 * 7?")  # type: ignore[attr-defined]
    assert cloud.seen[1][1]["tool_choice"] == "mul"


@each_way
async def test_its_object_is_checked_against_the_schema(ask: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    call = {"name": "Answer", "args": {"n": 42}, "id": "c9", "type": "tool_call"}
    good = Cloud(answer=AIMessage("", tool_calls=[call]))
    chat, _ = make({"big": [dead()] * 3}, fallbacks=[good], on_fallback="mark")
    message = await ask(chat, "6 * 7?", schema=schema)
    assert message.content == '{"n": 42}'
    assert message.tool_calls == []
    bad = Cloud(answer=AIMessage("forty two"))
    chat, _ = make({"big": [dead()] * 3}, fallbacks=[bad], on_fallback="mark")
    with pytest.raises(DegradedAnswer) as caught:
        await ask(chat, "6 * 7?", schema=schema)
    assert "schema" in caught.value.reasons


@each_way
async def test_one_without_tools_or_objects_does_what_it_can(ask: Any) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    writer = FakeListChatModel(responses=['{"n": 42}'])
    chat, _ = make({"big": [dead()] * 3}, fallbacks=[writer], on_fallback="mark")
    assert (await ask(chat, "6 * 7?", schema=schema)).content == '{"n": 42}'
    chat, _ = make({"big": [dead()] * 3}, fallbacks=[writer], on_fallback="mark")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    with pytest.raises(AttemptsExhausted) as caught:
        await ask(chat, "6 * 7?", tools=tools)
    assert caught.value.guard is not None
    assert [a.model for a in caught.value.guard.attempts] == ["big"] * 3 + ["FakeListChatModel"]


@each_way
async def test_what_it_cannot_be_held_to_is_not_asked_of_it(ask: Any) -> None:
    cloud = Cloud()
    chat, _ = make({"big": [dead()] * 3}, fallbacks=[cloud], on_fallback="mark")
    with pytest.raises(AttemptsExhausted):
        await ask(chat, "6 * 7?", regex="[0-9]+")
    assert cloud.seen == []


@each_way
@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (theirs.ModelRateLimitError("busy"), 3),
        (ConnectionError("gone"), 3),
        (theirs.ModelAuthenticationError("who?"), 1),
    ],
)
async def test_its_errors_are_retried_as_langchain_classifies_them(
    ask: Any, error: Exception, attempts: int
) -> None:
    cloud = Cloud(error=error)
    chat, _ = make({"big": [dead()] * 3}, fallbacks=[cloud], on_fallback="mark")
    with pytest.raises(AttemptsExhausted) as caught:
        await ask(chat, "6 * 7?")
    assert len(cloud.seen) == attempts
    assert caught.value.guard is not None
    assert type(error).__name__ in caught.value.guard.attempts[-1].error


# ---- the framework's own retries and fallbacks ---------------------------------------------


def is_retryable(error: BaseException) -> bool:
    return bool(getattr(error, "is_retryable", False))


@pytest.mark.parametrize("ask", [way_invoke, way_ainvoke])
async def test_with_retry_on_every_error_does_multiply_them(ask: Any) -> None:
    chat, backend = make({"big": [dead()] * 99})
    retrying = chat.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
    with pytest.raises(AttemptsExhausted):
        await ask(retrying, "6 * 7?")
    assert len(backend.calls) == 6  # as it was asked to: it is in the documentation


@each_way
async def test_with_fallbacks_takes_over_when_the_attempts_are_used_up(ask: Any) -> None:
    chat, backend = make({"big": [dead()] * 99})
    cloud = Cloud()
    message = await ask(chat.with_fallbacks([cloud]), "6 * 7?")
    assert message.content == "About forty."
    assert len(backend.calls) == 3
    assert len(cloud.seen) == 1


@each_way
async def test_with_fallbacks_can_be_limited_to_kinds_of_errors(ask: Any) -> None:
    chat, _ = make({"big": [QueueFull("full.")] * 99})
    limited = chat.with_fallbacks(
        [FakeListChatModel(responses=["x"])], exceptions_to_handle=(theirs.ModelTimeoutError,)
    )
    with pytest.raises(AttemptsExhausted):
        await ask(limited, "6 * 7?")
