"""Objects instead of messages."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration
from pydantic import BaseModel, Field
from pydantic.v1 import BaseModel as BaseModelV1

from langchain_mlx_guarded import ChatMLXGuarded
from langchain_mlx_guarded.structured import ObjectParser
from mlx_guarded_llm import Backend, RetryPolicy
from mlx_guarded_llm.errors import DegradedAnswer, InvalidRequest
from mlx_guarded_llm.grammar.validation import mismatch
from mlx_guarded_llm.testing.faulty import FaultyBackend, Says
from tests.conftest import MakeModel

from .test_framework import both


class Vote(BaseModel):
    """A vote on a motion."""

    aye: bool = Field(description="in favour")
    weight: Literal[1, 2]


class VoteDict(TypedDict):
    """A vote on a motion."""

    aye: bool
    weight: int


class Ballot(BaseModel):
    votes: list[Vote] = Field(max_length=2)


METHODS = ("json_schema", "function_calling")


@pytest.fixture
def chat(backend: Backend, tiny: MakeModel) -> ChatMLXGuarded:
    """Its weights are noise, so whatever has form has it from the grammar."""
    return ChatMLXGuarded(model=tiny(), backend=backend, seed=1)


async def asked(chain: Any, is_async: bool) -> Any:
    return await chain.ainvoke("Vote!") if is_async else chain.invoke("Vote!")


@both
@pytest.mark.parametrize("method", METHODS)
async def test_a_class_gives_instances(chat: ChatMLXGuarded, method: Any, is_async: bool) -> None:
    vote = await asked(chat.with_structured_output(Vote, method=method), is_async)
    assert isinstance(vote, Vote)


@pytest.mark.parametrize("method", METHODS)
def test_nested_classes_do_too(chat: ChatMLXGuarded, method: Any) -> None:
    assert isinstance(chat.with_structured_output(Ballot, method=method).invoke("Vote!"), Ballot)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", [VoteDict, Vote.model_json_schema()], ids=["typed", "json"])
def test_other_schemas_give_dictionaries(chat: ChatMLXGuarded, method: Any, schema: Any) -> None:
    vote = chat.with_structured_output(schema, method=method).invoke("Vote!")
    assert isinstance(vote, dict)
    assert set(vote) == {"aye", "weight"}


def test_a_json_schema_needs_no_title(chat: ChatMLXGuarded) -> None:
    bare = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    assert set(chat.with_structured_output(bare).invoke("Vote!")) == {"ok"}
    tool = {"name": "vote", "description": "Vote.", "parameters": bare}
    assert set(chat.with_structured_output(tool).invoke("Vote!")) == {"ok"}


NAMED = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}},
    "required": ["name"],
    "additionalProperties": False,
}
WRAPPED = {"name": "city", "strict": True, "schema": NAMED}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", [WRAPPED, {"type": "json_schema", "json_schema": WRAPPED}])
def test_openais_wrapping_holds_as_what_is_in_it(
    chat: ChatMLXGuarded, method: Any, form: dict[str, Any]
) -> None:
    found = chat.with_structured_output(form, method=method).invoke("A city.")
    assert mismatch(found, NAMED) == ""


@pytest.mark.filterwarnings("ignore:.*[Pp]ydantic")
def test_classes_of_pydantics_first_version_work(chat: ChatMLXGuarded) -> None:
    class Old(BaseModelV1):
        """Something old."""

        aye: bool

    assert isinstance(chat.with_structured_output(Old).invoke("Vote!"), Old)


@pytest.mark.parametrize("method", METHODS)
async def test_a_stream_ends_with_the_whole_object(chat: ChatMLXGuarded, method: Any) -> None:
    votes = list(chat.with_structured_output(Vote, method=method).stream("Vote!"))
    assert len(votes) == 1
    assert isinstance(votes[0], Vote)
    pieces = [p async for p in chat.with_structured_output(VoteDict, method=method).astream("V!")]
    assert all(isinstance(piece, dict) for piece in pieces)
    assert set(pieces[-1]) == {"aye", "weight"}


def test_a_dictionary_is_streamed_as_it_grows(chat: ChatMLXGuarded) -> None:
    pieces = list(chat.with_structured_output(VoteDict).stream("Vote!"))
    assert pieces[0] == {}
    assert len(pieces) >= 3


def test_json_mode_holds_to_an_object_and_no_more(backend: Backend, scripted: MakeModel) -> None:
    chat = ChatMLXGuarded(model=scripted('{"aye": true, "weight": 2}'), backend=backend)
    assert chat.with_structured_output(method="json_mode").invoke("V!") == {
        "aye": True,
        "weight": 2,
    }
    assert isinstance(chat.with_structured_output(Vote, method="json_mode").invoke("V!"), Vote)
    other = ChatMLXGuarded(model=scripted('{"no": 1}'), backend=backend)
    with pytest.raises(OutputParserException, match="does not fit Vote"):
        other.with_structured_output(Vote, method="json_mode").invoke("Vote!")


@pytest.mark.parametrize("method", METHODS)
def test_the_raw_message_comes_along_when_asked_for(chat: ChatMLXGuarded, method: Any) -> None:
    found = chat.with_structured_output(Vote, method=method, include_raw=True).invoke("Vote!")
    assert isinstance(found["parsed"], Vote)
    assert found["parsing_error"] is None
    assert found["raw"].response_metadata["guard"]["served_model"] == chat.model_name


def test_what_does_not_fit_is_told_beside_the_raw_message(
    backend: Backend, scripted: MakeModel
) -> None:
    chat = ChatMLXGuarded(model=scripted('{"no": 1}'), backend=backend)
    found = chat.with_structured_output(Vote, method="json_mode", include_raw=True).invoke("V!")
    assert found["parsed"] is None
    assert isinstance(found["parsing_error"], OutputParserException)
    assert found["raw"].content == '{"no": 1}'


@both
@pytest.mark.parametrize("include_raw", [False, True])
@pytest.mark.parametrize("method", METHODS)
async def test_an_object_that_is_cut_off_is_an_error(
    chat: ChatMLXGuarded, method: Any, include_raw: bool, is_async: bool
) -> None:
    chat.retry = RetryPolicy(attempts=1)
    cut = chat.with_structured_output(Ballot, method=method, include_raw=include_raw, max_tokens=9)
    with pytest.raises(DegradedAnswer):
        await asked(cut, is_async)


def test_even_a_marked_one_that_is_cut_off_is_never_mended() -> None:
    backend: Any = FaultyBackend(faults={"m": [Says('{"aye": true', "", "length")] * 2})
    chat = ChatMLXGuarded(
        model="m", backend=backend, on_degraded="mark", retry=RetryPolicy(attempts=1)
    )
    with pytest.raises(DegradedAnswer):
        chat.with_structured_output(VoteDict).invoke("Vote!")
    told: Any = chat.with_structured_output(VoteDict, include_raw=True).invoke("Vote!")
    assert told["parsed"] is None
    assert isinstance(told["parsing_error"], OutputParserException)
    assert "cut off" in str(told["parsing_error"])


@both
@pytest.mark.parametrize("streaming", [False, True])
async def test_an_agent_gets_an_object_from_a_model_that_has_tools(
    backend: Backend, scripted: MakeModel, streaming: bool, is_async: bool
) -> None:
    def now() -> str:
        """Tell the time."""
        return "noon"

    voter = scripted('{"aye": true, "weight": 2}', tools=True)
    chat = ChatMLXGuarded(model=voter, backend=backend, streaming=streaming)
    agent: Any = create_agent(chat, tools=[now], response_format=Vote)
    state = {"messages": [("user", "Vote!")]}
    found = await agent.ainvoke(state) if is_async else agent.invoke(state)
    assert found["structured_response"] == Vote(aye=True, weight=2)
    assert [message.type for message in found["messages"]] == ["human", "ai"]


@pytest.mark.parametrize("method", METHODS)
def test_a_schema_of_several_types_is_taken(chat: ChatMLXGuarded, method: Any) -> None:
    """Generators of Go write it like this, and LangChain's traces read one type only."""
    schema = {**Vote.model_json_schema(), "type": ["null", "object"]}
    vote = chat.with_structured_output(schema, method=method).invoke("Vote!")
    assert set(vote) == {"aye", "weight"} if method == METHODS[1] else not mismatch(vote, schema)


def test_it_is_traced_as_structured_output() -> None:
    chain: Any = ChatMLXGuarded(model="m").with_structured_output(Vote, strict=True, seed=1)
    bound = chain.first.kwargs
    assert bound["ls_structured_output_format"]["kwargs"]["method"] == "json_schema"
    assert bound["ls_structured_output_format"]["schema"] is Vote
    assert bound["schema"]["title"] == "Vote"
    assert bound["schema"]["additionalProperties"] is False
    assert bound["seed"] == 1


def test_wrong_arguments_are_told_at_once() -> None:
    chat = ChatMLXGuarded(model="m")
    with pytest.raises(InvalidRequest, match="method is 'yaml'"):
        chat.with_structured_output(Vote, method="yaml")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="needs a schema"):
        chat.with_structured_output()


# ---- the parser ----------------------------------------------------------------------------


def read(parser: ObjectParser, message: AIMessage, *, partial: bool = False) -> Any:
    return parser.parse_result([ChatGeneration(message=message)], partial=partial)


@pytest.mark.parametrize(
    ("text", "words"), [('{"a": 1', "no JSON"), ("", "no JSON"), ("Sure: {}", "no JSON")]
)
def test_half_an_object_is_no_object(text: str, words: str) -> None:
    with pytest.raises(OutputParserException, match=words):
        read(ObjectParser(), AIMessage(text))


def test_a_missing_call_is_an_error() -> None:
    with pytest.raises(OutputParserException, match="does not call f"):
        read(ObjectParser(tool="f"), AIMessage("I would rather not."))


def test_an_unfinished_stream_gives_what_there_is() -> None:
    begun = AIMessageChunk(content='{"a": "so fa')
    assert read(ObjectParser(), begun, partial=True) == {"a": "so fa"}
    assert read(ObjectParser(cls=Vote), begun, partial=True) is None
    assert read(ObjectParser(), AIMessageChunk(content="["), partial=True) is None
