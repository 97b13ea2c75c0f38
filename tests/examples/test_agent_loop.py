"""The agent calls its tool, and its answer rests on what that says."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel

from langchain_mlx_guarded import ChatMLXGuarded
from mlx_guarded_llm import Backend, taint
from mlx_guarded_llm.testing.chat_templates import chatml
from tests.conftest import MakeModel

from ._examples import example

CALL = '<tool_call>\n{"name": "inhabitants", "arguments": {"city": "Lyon"}}\n</tool_call>'
ANSWER = "There are 520,000 of them."
# A scripted model goes on after the last piece of its prompt. So it says the answer only
# when the prompt shows the tool's true result, and calls the tool otherwise.
READS_THE_RESULT = chatml(tools=True) + (
    "{%- if messages[-1].role == 'tool' and '520,000' in messages[-1].content %}"
    "{{- '</tool_call>' }}{%- endif %}"
)


@pytest.fixture
def caller(scripted: MakeModel) -> str:
    return scripted(CALL + ANSWER, tools=True, chat_template=READS_THE_RESULT)


def kinds(state: Any) -> list[str]:
    return [message.type for message in state["messages"]]


def test_the_tool_is_called_and_its_result_used(backend: Backend, caller: str) -> None:
    agent_loop = example("agent_loop")
    state = agent_loop.ask(ChatMLXGuarded(model=caller, backend=backend), "And in Lyon?")
    assert kinds(state) == ["human", "ai", "tool", "ai"]
    _, call, result, answer = state["messages"]
    assert [(c["name"], c["args"]) for c in call.tool_calls] == [("inhabitants", {"city": "Lyon"})]
    assert result.content == "520,000 people live in Lyon."
    assert answer.content == ANSWER
    assert [guard["served_model"] for guard in state["guard"]] == [caller, caller]
    assert not any(taint(state["messages"]))


def test_what_a_fallback_says_is_marked_and_shown(
    backend: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    agent_loop = example("agent_loop")

    class Cloud(FakeListChatModel):
        def bind_tools(self, tools: Any, **options: Any) -> Any:
            return self

    cloud = Cloud(responses=["About half a million."])
    gone = ChatMLXGuarded(model="/gone", backend=backend)
    state = agent_loop.ask(gone, "And in Lyon?", fallbacks=[cloud])
    assert state["messages"][-1].content == "About half a million."
    assert [step.own for step in taint(state["messages"])] == [(), ("fallback",)]
    agent_loop.show(state["messages"])
    assert "not as asked: ('fallback',)" in capsys.readouterr().out
