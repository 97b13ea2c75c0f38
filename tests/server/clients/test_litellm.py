"""litellm, as a library: `openai/NAME` and our address."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest

from tests.conftest import MakeModel

from ..conftest import ANSWER, Running
from .conftest import ServeModule, usual_models

# Every call warns of something in litellm's own code.
pytestmark = pytest.mark.filterwarnings("ignore")

ASK = [{"role": "user", "content": "19 + 23?"}]
NUMBER = {"type": "integer"}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}},
    },
}


@pytest.fixture(scope="module")
def litellm() -> Any:
    """The module; its import takes seconds, and only these tests need it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # otherwise its import fetches one
        yield importlib.import_module("litellm")


@pytest.fixture(scope="module")
def server(
    litellm: Any,
    serve_module: ServeModule,
    scripted: MakeModel,
    tiny: MakeModel,
    embedder: MakeModel,
) -> Running:
    return serve_module(
        models={
            **usual_models(scripted, embedder),
            "thinker": scripted("<think>Well.</think>Paris.", thinking=True),
            "broken": {"model": tiny(nan=True), "retry": {"attempts": 1}},
        }
    )


def at(server: Running, model: str) -> dict[str, Any]:
    return {"model": f"openai/{model}", "api_base": f"{server.url}/v1", "api_key": "none"}


async def test_an_answer(litellm: Any, server: Running) -> None:
    answer = litellm.completion(**at(server, "smollm2-135m"), messages=ASK)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens > 5
    assert answer.guard["served_model"] == "smollm2-135m"
    answer = await litellm.acompletion(**at(server, "smollm2-135m"), messages=ASK)
    assert answer.choices[0].message.content == ANSWER


def test_a_stream(litellm: Any, server: Running) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(litellm.completion(**at(server, "smollm2-135m"), messages=ASK, **options))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(piece or "" for piece in pieces) == ANSWER
    assert chunks[-1].usage.completion_tokens > 5


def test_thinking(litellm: Any, server: Running) -> None:
    answer = litellm.completion(**at(server, "thinker"), messages=ASK)
    message = answer.choices[0].message
    assert (message.content, message.reasoning_content) == ("Paris.", "Well.")
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_and_its_result(litellm: Any, server: Running, stream: bool) -> None:
    messages: list[Any] = list(ASK)

    def ask() -> Any:
        given = {"messages": messages, "tools": [ADD], "stream": stream}
        answer = litellm.completion(**at(server, "qwen3-4b"), **given)
        answer = litellm.stream_chunk_builder(list(answer)) if stream else answer
        return answer.choices[0]

    asked = ask()
    assert asked.finish_reason == "tool_calls"
    (call,) = asked.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 19, "b": 23})
    messages += [asked.message, {"role": "tool", "tool_call_id": call.id, "content": "42"}]
    assert ask().message.content == "It is 42."


def test_vectors(litellm: Any, server: Running) -> None:
    texts = ["one", "two"]
    found = litellm.embedding(**at(server, "all-minilm-l6-v2"), input=texts)
    own = server.backend.embed("all-minilm-l6-v2", texts).vectors
    for given, vector in zip(found.data, own, strict=True):
        assert given["embedding"] == pytest.approx(vector.tolist(), abs=1e-6)


# ---- errors --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long(litellm: Any, server: Running, stream: bool) -> None:
    messages = [{"role": "user", "content": "a" * 3000}]
    with pytest.raises(litellm.ContextWindowExceededError, match="2048"):
        list(litellm.completion(**at(server, "smollm2-135m"), messages=messages, stream=stream))


def test_a_model_that_is_not_there(litellm: Any, server: Running) -> None:
    with pytest.raises(litellm.NotFoundError, match="There are: all-minilm-l6-v2"):
        litellm.completion(**at(server, "nobody"), messages=ASK)


def test_retries_do_not_pile_up(litellm: Any, server: Running) -> None:
    """The guard has tried; the client's own retries would ask the engine again."""

    def queued() -> int:
        return sum(event.kind == "request.queued" for event in server.backend.events())

    before = queued()
    with pytest.raises(litellm.InternalServerError, match="not finite"):
        litellm.completion(**at(server, "broken"), messages=ASK)
    assert queued() == before + 1


# ---- the page ------------------------------------------------------------------------
