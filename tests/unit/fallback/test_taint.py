from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole

from mlx_guarded_llm import Provenance, taint
from mlx_guarded_llm.errors import FallbackRefused, InvalidRequest
from mlx_guarded_llm.fallback import provenance_of
from mlx_guarded_llm.results import Attempt
from tests.unit.fallback.test_checks import answer

GOOD = Provenance(request_id="1", requested_model="big", served_model="big")
FALLBACK = Provenance(request_id="2", requested_model="big", served_model="small", fallback=True)
CUT = Provenance(request_id="3", requested_model="big", served_model="big", degraded=("length",))


def said(guard: Provenance | None, **fields: Any) -> AIMessage:
    metadata = {} if guard is None else {"guard": guard.as_dict()}
    return AIMessage("...", response_metadata=metadata, **fields)


def test_an_answer_rests_on_all_that_came_before() -> None:
    steps = taint([HumanMessage("?"), said(FALLBACK), HumanMessage("?"), said(GOOD), said(CUT)])
    assert [bool(step) for step in steps] == [False, True, False, True, True]
    assert steps[1].own == ("fallback",)
    assert steps[3].own == () and steps[3].inherited == (1,)
    assert steps[4].own == ("length",) and steps[4].inherited == (1,)


def test_a_chain_of_answers_as_asked_is_clean() -> None:
    assert not any(taint([HumanMessage("?"), said(GOOD), HumanMessage("?"), said(GOOD)]))


def test_an_answer_of_unknown_origin_inherits_but_is_not_accused() -> None:
    steps = taint([said(None), said(FALLBACK), said(None)])
    assert [step.inherited for step in steps] == [(), (), (1,)]
    assert steps[0].own == ()


def test_a_tools_result_rests_on_the_answer_that_called_it() -> None:
    call = {"name": "f", "args": {}, "id": "c1"}
    other = {"name": "f", "args": {}, "id": "c2"}
    steps = taint(
        [
            said(FALLBACK, tool_calls=[call]),
            ToolMessage("3", tool_call_id="c1"),
            said(GOOD, tool_calls=[other]),
            ToolMessage("4", tool_call_id="unknown"),
        ]
    )
    assert [step.inherited for step in steps] == [(), (0,), (0,), ()]


def test_what_a_step_rests_on_can_be_told() -> None:
    results = [FALLBACK, GOOD, GOOD, GOOD]
    steps = taint(results, rests_on={1: [], 2: [0], 3: [1]})
    assert [bool(step) for step in steps] == [True, False, True, False]
    assert steps[2].inherited == (0,)


def test_taint_passes_through_the_steps_between() -> None:
    steps = taint([FALLBACK, GOOD, GOOD], rests_on={1: [0], 2: [1]})
    assert steps[2].inherited == (0,)


@pytest.mark.parametrize("sources", [[1], [-1], [0, 5]])
def test_a_step_cannot_rest_on_a_later_one(sources: list[int]) -> None:
    with pytest.raises(InvalidRequest):
        taint([GOOD, GOOD], rests_on={1: sources})


def test_openai_messages_and_llama_index_are_understood() -> None:
    response = ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content="..."),
        raw={"guard": FALLBACK.as_dict()},
    )
    body = {"role": "assistant", "content": "...", "guard": CUT.as_dict()}
    human = {"role": "user", "content": "?"}
    later = ChatMessage(role=MessageRole.ASSISTANT, content="...")
    steps = taint([human, response, body, later])
    assert [step.own for step in steps] == [(), ("fallback",), ("length",), ()]
    assert steps[3].inherited == (1, 2)


def test_an_error_that_carries_an_answer_tells_where_it_came_from() -> None:
    from dataclasses import replace

    refused = FallbackRefused("no.", answer=replace(answer("x"), guard=FALLBACK))
    assert provenance_of(refused) == FALLBACK
    assert taint([refused])[0].own == ("fallback",)


def test_provenance_survives_json() -> None:
    import json

    attempt = Attempt(model="big", outcome="degraded", reasons=("loop",), changed={"seed": 3})
    guard = Provenance(
        request_id="1",
        requested_model="big",
        served_model="big",
        degraded=("loop",),
        attempts=(attempt,),
    )
    assert Provenance.from_dict(json.loads(json.dumps(guard.as_dict()))) == guard
    assert Provenance.from_dict({**guard.as_dict(), "of_tomorrow": 1}) == guard
