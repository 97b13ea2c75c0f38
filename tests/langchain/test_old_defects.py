"""What the LangChain adapters before this one did wrong, one test for each.

ChatMLX and MLXPipeline of langchain-community 0.4.2, tried with mlx-lm 0.32.2.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool

from langchain_mlx_guarded import ChatMLXGuarded
from mlx_guarded_llm import Backend
from mlx_guarded_llm.record import overlaps
from tests.conftest import MakeModel


def test_invoke_answers_instead_of_raising_a_type_error(
    backend: Backend, scripted: MakeModel
) -> None:
    chat = ChatMLXGuarded(model=scripted("Yes."), backend=backend)
    assert chat.invoke("Hi", temperature=0.7, max_tokens=50).content == "Yes."


def test_a_stream_streams_instead_of_raising_an_import_error(
    backend: Backend, scripted: MakeModel
) -> None:
    chat = ChatMLXGuarded(model=scripted("One, two, three."), backend=backend)
    assert len(list(chat.stream("Count"))) > 3


def test_the_last_message_need_not_be_a_persons(backend: Backend, scripted: MakeModel) -> None:
    chat = ChatMLXGuarded(model=scripted("Yes."), backend=backend)
    call = {"name": "f", "args": {}, "id": "c1", "type": "tool_call"}
    asked = [HumanMessage("Hi"), AIMessage("", tool_calls=[call])]
    answered = [*asked, ToolMessage("42", tool_call_id="c1")]
    for messages in (answered, [HumanMessage("Hi"), AIMessage("Hello.")]):
        assert chat.invoke(messages).content == "Yes."


def test_what_bind_tools_sets_is_read(backend: Backend, tiny: MakeModel) -> None:
    def now() -> str:
        """Tell the time."""
        return "noon"

    chat = ChatMLXGuarded(model=tiny(), backend=backend)
    message = chat.bind_tools([now], tool_choice="any", parallel_tool_calls=False).invoke("Time?")
    assert [call["name"] for call in message.tool_calls] == ["now"]


def test_an_agent_runs_its_loop(backend: Backend, scripted: MakeModel) -> None:
    calls = []

    @tool
    def now() -> str:
        """Tell the time."""
        calls.append("now")
        return "noon"

    caller = scripted('<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', tools=True)
    talker = scripted("It is noon.", tools=True)

    class ByTurn(ChatMLXGuarded):
        """A scripted model says one thing only, so each turn has its own."""

        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            name = talker if isinstance(messages[-1], ToolMessage) else caller
            return super()._generate(messages, *args, **{**kwargs, "model": name})

    agent: Any = create_agent(ByTurn(model=caller, backend=backend), tools=[now])
    state = agent.invoke({"messages": [("user", "What time is it?")]})
    assert calls == ["now"]
    assert state["messages"][-1].content == "It is noon."


@pytest.mark.parametrize("text", ["naïve café", "日本語のテキスト", "👩‍👩‍👧 familia"])
def test_characters_of_several_tokens_come_whole(
    backend: Backend, scripted: MakeModel, text: str
) -> None:
    chat = ChatMLXGuarded(model=scripted(text, piece_bytes=2), backend=backend)
    chunks = [str(chunk.content) for chunk in chat.stream("Hi")]
    assert "".join(chunks) == text
    assert not any("\ufffd" in chunk for chunk in chunks)


def test_threads_may_share_a_model(backend: Backend, scripted: MakeModel) -> None:
    chats = [ChatMLXGuarded(model=scripted(f"I am {n}."), backend=backend) for n in "AB"]
    answers: list[list[Any]] = [[], []]

    def talk(index: int) -> None:
        for _ in range(3):
            answers[index].append(chats[index].invoke("Who?").content)

    threads = [threading.Thread(target=talk, args=(i % 2,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [["I am A."] * 9, ["I am B."] * 9]
    assert overlaps(backend.timeline()) == []


def test_stop_max_tokens_and_seed_of_one_call_are_heeded(
    backend: Backend, scripted: MakeModel
) -> None:
    chat = ChatMLXGuarded(model=scripted("One, two, three."), backend=backend, stop_sequences=["x"])
    assert chat.invoke("Hi", stop=["two"]).content == "One, "
    message = chat.invoke("Hi", max_tokens=2, seed=7)
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_tokens"] == 2
    assert message.response_metadata["guard"]["seed"] == 7


async def test_asking_does_not_block_the_event_loop(backend: Backend, scripted: MakeModel) -> None:
    endless = scripted("tick tock ", loop=True, context_window=200_000)
    chat = ChatMLXGuarded(model=endless, backend=backend, max_tokens=100_000)
    task = asyncio.create_task(chat.ainvoke("Go"))
    async for _ in chat.astream("Go"):
        break  # the loop went on although the other call never ends by itself
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_usage_is_reported(backend: Backend, scripted: MakeModel) -> None:
    usage = ChatMLXGuarded(model=scripted("Yes."), backend=backend).invoke("Hi").usage_metadata
    assert usage is not None
    assert usage["input_tokens"] > 0 < usage["output_tokens"]


def test_weights_are_not_loaded_in_the_constructor(backend: Backend, scripted: MakeModel) -> None:
    ChatMLXGuarded(model=scripted("Yes."), backend=backend)
    assert backend.models() == []


def test_the_prompt_asks_for_an_answer(backend: Backend, scripted: MakeModel) -> None:
    chat = ChatMLXGuarded(model=scripted("Yes."), backend=backend)
    tokens = backend.tokens(chat.model_name, [{"role": "user", "content": "Hi"}])
    used = chat.invoke("Hi").usage_metadata
    assert used is not None
    assert used["input_tokens"] == len(tokens)  # add_generation_prompt and all
