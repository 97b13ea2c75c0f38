"""Answers of other packages' models: none that is cut, refused or wrong passes for a full one."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableMap, RunnablePassthrough
from langchain_core.utils.json import parse_partial_json

from mlx_guarded_llm.errors import DegradedAnswer, ModelNotFound, QueueFull
from mlx_guarded_llm.testing.faulty import Says as Local

from ._each import FACES, each_adapter
from ._external import DIALECTS, Chat, Says, external
from ._faces import Answer, Face, Heard

TEXT = "The three causes of it are these."
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}
NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": NUMBERS}}]


class ChatOllama(Chat):
    """Its package joins the pieces of a stream, and reads half an object as a whole one."""

    def with_structured_output(self, schema: Any, **kwargs: Any) -> Any:
        return RunnableMap(raw=self) | RunnablePassthrough.assign(
            parsed=lambda answer: parse_partial_json(answer["raw"].content),
            parsing_error=lambda answer: None,
        )


each_dialect = pytest.mark.parametrize(
    ("outcome", "metadata", "raw"),
    [
        pytest.param(outcome, metadata, raw, id=f"{outcome or 'full'}-{provider}")
        for outcome, provider, metadata, raw in DIALECTS
    ],
)


def big(face: Face, fallback: Any, **settings: Any) -> Any:
    gone = Heard(faults={"big": [ModelNotFound("gone.")] * 9})
    marked: dict[str, Any] = {"on_fallback": "mark", "on_degraded": "mark"}
    return face.make(gone, "big", fallbacks=[fallback], **(marked | settings))


async def answered(face: Face, says: Says, **options: Any) -> Answer:
    answer = await face.ask(big(face, external(face.library, says)), "Why?", **options)
    assert answer.guard.fallback
    return answer


@each_adapter
@each_dialect
async def test_why_an_answer_ended_is_understood_in_each_dialect(
    face: Face, outcome: str, metadata: dict[str, Any], raw: Any
) -> None:
    answer = await answered(face, Says(text=TEXT, metadata=metadata, raw=raw))
    assert answer.text == TEXT
    assert answer.guard.degraded == ((outcome,) if outcome else ())
    with_empty = await answered(face, Says(metadata=metadata, raw=raw))
    assert with_empty.guard.degraded, "no answer is full that says nothing"


@each_adapter
@each_dialect
async def test_an_object_and_a_call_pass_only_where_they_are_whole(
    face: Face, outcome: str, metadata: dict[str, Any], raw: Any
) -> None:
    said: dict[str, Any] = {"metadata": metadata, "raw": raw}
    found = await answered(face, Says(text='{"name": "Paris"}', **said), schema=True)
    assert found.guard.degraded == ((outcome,) if outcome else ())
    call = await answered(face, Says(calls=(("add", {"a": 1}),), **said), tools=TOOLS)
    lost = metadata.get("finish_reason") == "tool_calls"  # here it is not
    cut = outcome in ("length", "unfinished") and not lost  # its last call may be half of one
    reasons = () if lost or not outcome else (outcome, "tool_call") if cut else (outcome,)
    assert call.guard.degraded == reasons
    assert call.calls == (() if cut else (("add", {"a": 1}),))
    assert call.unread == cut


@each_adapter
async def test_a_call_in_which_the_caller_cut_the_answer_off_is_none(face: Face) -> None:
    """Libraries complete half a call as they join the pieces of a stream."""
    said: dict[str, Any] = {"metadata": {"stop_reason": "max_tokens"}}
    says = Says(calls=(("add", {"a": 1}), ("add", {"a": 2})), raw=said["metadata"], **said)
    answer = await answered(face, says, tools=TOOLS, max_tokens=5)
    assert answer.guard.degraded == ("length", "tool_call")
    assert answer.calls == (("add", {"a": 1}),) and answer.unread == 1


@pytest.mark.parametrize("face", [f for f in FACES if f.library == "langchain"], ids=str)
@pytest.mark.parametrize("schema", [None, SCHEMA])
async def test_a_stream_that_broke_off_before_it_told_its_end_is_not_whole(
    face: Face, schema: Any
) -> None:
    says = Says(text='{"name": "Par', metadata={"model_provider": "ollama"})
    answer = await face.ask(big(face, ChatOllama(says=says, asked=[])), "Why?", schema=schema)
    assert answer.text == '{"name": "Par'
    assert answer.guard.degraded == ("unfinished", *(("schema",) if schema else ()))
    whole = Says(text='{"name": "Paris"}', metadata={"done": True, "done_reason": "stop"})
    answer = await face.ask(big(face, ChatOllama(says=whole, asked=[])), "Why?", schema=schema)
    assert answer.text == '{"name": "Paris"}' and answer.guard.degraded == ()


@each_adapter
async def test_a_degraded_fallback_is_refused_unless_it_is_to_be_marked(face: Face) -> None:
    says = Says(text="I", metadata={"stop_reason": "refusal"}, raw={"stop_reason": "refusal"})
    with pytest.raises(DegradedAnswer) as caught:
        await face.ask(big(face, external(face.library, says), on_degraded="raise"), "Why?")
    assert caught.value.reasons == ("filtered",)


@each_adapter
@pytest.mark.parametrize(
    ("calls", "choice", "reasons"),
    [
        ((), "required", ("tool_call",)),
        ((), "add", ("tool_call",)),
        ((), "auto", ()),
        ((("add", {"a": 1}),), "required", ()),
        ((("add", {"a": 1}), ("add", {"a": 2})), "auto", ()),
        ((("add", {"a": "one"}),), "auto", ("tool_call",)),
        ((("add", {}),), "required", ("tool_call",)),
        ((("fly", {"a": 1}),), "auto", ("tool_call",)),
        ((("add", {"a": 1}), ("fly", {})), "auto", ("tool_call",)),
        ((("add", '{"a": 1'),), "auto", ("tool_call",)),
        ((("add", {"a": 1}),), "none", ("tool_call",)),
    ],
)
async def test_calls_are_those_that_were_offered(
    face: Face, calls: Any, choice: str, reasons: tuple[str, ...]
) -> None:
    says = Says(text="So be it.", calls=calls)
    answer = await answered(face, says, tools=TOOLS, tool_choice=choice)
    assert answer.guard.degraded == reasons
    fit = tuple(c for c in calls if c == ("add", c[1]) and isinstance(c[1], dict))
    fit = tuple(c for c in fit if isinstance(c[1].get("a"), int))
    assert answer.calls == (() if choice == "none" else fit)
    assert answer.unread == len(calls) - len(answer.calls)


@each_adapter
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"name": "Paris"}', '{"name": "Paris"}'),
        ('```json\n{"name": "Paris"}\n```', '{"name": "Paris"}'),
        ('\n~~~~\n{"name":\n "Paris"}\n~~~~\n', '{"name":\n "Paris"}'),
        ('```{"name": "`"}```', '{"name": "`"}'),
        ('```json\n{"town": "Paris"}\n```', None),
        ('```json\n{"name": "Par', None),
        ('Here:\n```json\n{"name": "Paris"}\n```', None),
        ("```json\n{}\n```\n```json\n{}\n```", None),
        ('{"name": 1}', None),
        ("[" * 100_000, None),
        ("Paris.", None),
    ],
)
async def test_an_object_is_held_to_its_schema(face: Face, text: str, found: str | None) -> None:
    answer = await answered(face, Says(text=text), schema=SCHEMA)
    assert answer.guard.degraded == (() if found else ("schema",))
    assert answer.text == (found or answer.text)


@each_adapter
async def test_what_stands_behind_a_stop_string_was_not_asked_for(face: Face) -> None:
    says = Says(text="one STOP two", metadata={"finish_reason": "length"}, raw={})
    answer = await answered(face, says, stop=["END", "STOP"])
    assert (answer.text, answer.finish_reason, answer.guard.degraded) == ("one ", "stop", ())


@each_adapter
async def test_tokens_that_nobody_counted_are_told_as_none(face: Face) -> None:
    assert (await answered(face, Says(text=TEXT))).usage is None


@each_adapter
async def test_what_a_guarded_fallback_marked_stays_marked(face: Face) -> None:
    own = Heard(faults={"small": [Local("I cannot say.")] * 9})
    inner = face.make(
        own, "small", on_degraded="mark", max_retries=0, retry=None, accept=lambda r: False
    )
    answer = await face.ask(big(face, inner), "Why?")
    assert answer.guard.degraded == ("refused",)
    assert answer.guard.fallback and answer.guard.requested_model == "big"


@pytest.mark.parametrize("face", [f for f in FACES if f.library == "langchain"], ids=str)
async def test_what_a_providers_server_did_is_no_part_of_the_next_prompt(face: Face) -> None:
    blocks = (
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "text", "text": "It is 21 degrees.", "annotations": []},
        {"type": "refusal", "refusal": " No more."},
    )
    heard = Heard(faults={"big": [QueueFull("full.")]}, answers={"big": "Warmer."})
    fallback = external(face.library, Says(blocks=blocks))
    marked: dict[str, Any] = {"on_fallback": "mark", "on_degraded": "mark", "retry": None}
    llm = face.make(heard, "big", fallbacks=[fallback], max_retries=0, **marked)
    first = await face.ask(llm, "The weather?")
    assert first.text == "It is 21 degrees." and "filtered" in first.guard.degraded
    history = [("user", "The weather?"), AIMessage(list(blocks)), ("user", "And tomorrow?")]
    assert (await face.ask(llm, history)).text == "Warmer."
    assert heard.prompts[-1][1] == {"role": "assistant", "content": "It is 21 degrees. No more."}
