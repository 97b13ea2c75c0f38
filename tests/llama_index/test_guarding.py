"""What LlamaIndex makes of our errors, and its LLMs as fallbacks of ours.

The rules of retries and fallbacks are in tests/contract/test_retries.py.
"""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from llama_index.core import (
    Document,
    PromptHelper,
    Settings,
    SummaryIndex,
    get_response_synthesizer,
)
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.llms import MockLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import SubQuestionQueryEngine
from llama_index.core.question_gen.types import SubQuestion
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.llms.mlx_guarded import MLXGuarded, RequestRefused, watch
from pydantic import BaseModel, Field

from mlx_guarded_llm import Backend, Provenance
from mlx_guarded_llm.errors import (
    ContextOverflow,
    DegradedAnswer,
    FallbackRefused,
    GuardedLLMError,
    InvalidRequest,
    ModelNotFound,
)
from tests.conftest import MakeModel
from tests.llama_index._helpers import ANSWERS, Fake, big, old_parts, user

RIGHT, OTHER = ANSWERS["big"], ANSWERS["small"]


def gone() -> ModelNotFound:
    """Not retried; another model may answer."""
    return ModelNotFound("no model 'big'.")


def guard_of(response: ChatResponse) -> Provenance:
    assert isinstance(response.raw, dict)
    return Provenance.from_dict(response.raw["guard"])


def test_the_rules_may_differ_for_a_call() -> None:
    llm = big(Fake(big=[gone(), gone()]), fallbacks=["small"])
    assert llm.chat(user(), on_fallback="mark").message.content == OTHER
    with pytest.raises(ModelNotFound):
        llm.chat(user(), fallbacks=[])


def test_complete_has_the_same_rules() -> None:
    with pytest.raises(FallbackRefused):
        big(Fake(big=[gone()]), fallbacks=["small"]).complete("Hi")
    marked = big(Fake(big=[gone()]), fallbacks=["small"], on_fallback="mark").complete("Hi")
    assert marked.text == OTHER and isinstance(marked.raw, dict) and marked.raw["guard"]["fallback"]


# ---- other LLMs of LlamaIndex as fallbacks ---------------------------------------------


def test_any_llm_of_llama_index_can_be_a_fallback() -> None:
    llm = big(Fake(big=[gone()]), fallbacks=[MockLLM()], on_fallback="mark")
    response = llm.chat(user("Echo this."))
    assert "Echo this." in str(response.message.content)
    assert guard_of(response).served_model == "MockLLM"


def test_a_second_mlx_guarded_keeps_its_own_provenance() -> None:
    other = big(Fake(), model="small")
    response = big(Fake(big=[gone()]), fallbacks=[other], on_fallback="mark").chat(user())
    guard = guard_of(response)
    assert (guard.requested_model, guard.served_model, guard.fallback) == ("big", "small", True)


# ---- where LlamaIndex passes on text only, or catches errors ----------------------------

FAILING: dict[str, Any] = {"fallbacks": ["small"]}


def refused() -> MLXGuarded:
    """Its only answers are a fallback's."""
    return big(Fake(big=[gone()] * 20), **FAILING)


def test_predict_does_not_paper_over_a_fallback() -> None:
    with pytest.raises(FallbackRefused):
        refused().predict(PromptTemplate("{q}"), q="?")


async def test_apredict_does_not_paper_over_a_fallback() -> None:
    with pytest.raises(FallbackRefused):
        await refused().apredict(PromptTemplate("{q}"), q="?")


@pytest.mark.parametrize(
    "mode", ["compact", "refine", "tree_summarize", "simple_summarize", "accumulate"]
)
def test_a_query_engine_does_not_paper_over_a_fallback(mode: str) -> None:
    index = SummaryIndex.from_documents([Document(text="Paris.")])
    engine = index.as_query_engine(llm=refused(), response_mode=mode)
    with pytest.raises(FallbackRefused):
        engine.query("Where?")


async def test_a_query_engine_does_not_paper_over_a_fallback_when_awaited() -> None:
    index = SummaryIndex.from_documents([Document(text="Paris.")])
    with pytest.raises(FallbackRefused):
        await index.as_query_engine(llm=refused()).aquery("Where?")


@pytest.mark.parametrize("mode", ["compact", "refine"])
async def test_a_prompt_that_is_too_long_is_no_empty_response(
    backend: Backend, tiny: MakeModel, mode: Any
) -> None:
    # The refining synthesizer catches ValueErrors, which a wrong request is.
    llm = MLXGuarded(model=tiny(), backend=backend)
    index = SummaryIndex(nodes=[TextNode(text="word " * 1000)])
    careless = PromptHelper(context_window=100_000)
    synthesizer = get_response_synthesizer(llm=llm, response_mode=mode, prompt_helper=careless)
    engine = index.as_query_engine(llm=llm, response_synthesizer=synthesizer)
    with pytest.raises(RequestRefused) as caught:
        engine.query("Where?")
    assert isinstance(caught.value.__cause__, ContextOverflow)
    assert caught.value.guard is not None
    with pytest.raises(RequestRefused):
        await engine.aquery("Where?")
    with pytest.raises(ContextOverflow):
        llm.chat(user("word " * 1000))


class Place(BaseModel):
    name: str


class Unheld(BaseModel):
    name: int = Field(json_schema_extra={"type": "any"})  # of which no grammar can be made


async def _each_object(llm: MLXGuarded, cls: type[BaseModel], text: str) -> list[Any]:
    """What becomes of each way to an object."""
    prompt = PromptTemplate(text)

    async def streamed() -> Any:
        return [one async for one in await llm.astream_structured_predict(cls, prompt)]

    found: list[Any] = []
    for ask in (
        lambda: llm.structured_predict(cls, prompt),
        lambda: list(llm.stream_structured_predict(cls, prompt)),
        lambda: llm.astructured_predict(cls, prompt),
        streamed,
    ):
        try:
            answer: Any = ask()
            found.append(await answer if inspect.isawaitable(answer) else answer)
        except Exception as error:
            found.append(error)
    return found


async def test_a_refused_object_is_no_value_error(backend: Backend, tiny: MakeModel) -> None:
    # LlamaIndex's refining synthesizer makes "Empty Response" of those.
    llm = MLXGuarded(model=tiny(context_window=64), backend=backend)
    for cls, text, cause in (
        (Unheld, "Where?", InvalidRequest),
        (Place, "word " * 99, ContextOverflow),
    ):
        for error in await _each_object(llm, cls, text):
            assert isinstance(error, RequestRefused) and not isinstance(error, ValueError)
            assert isinstance(error.__cause__, cause)


@pytest.mark.parametrize("mode", ["compact", "refine"])
async def test_a_refused_object_is_no_empty_response(
    backend: Backend, tiny: MakeModel, mode: Any
) -> None:
    llm = MLXGuarded(model=tiny(), backend=backend)
    synthesizer = get_response_synthesizer(llm=llm, response_mode=mode, output_cls=Unheld)
    nodes = [NodeWithScore(node=TextNode(text="Paris."))]
    with pytest.raises(RequestRefused):
        synthesizer.synthesize("Where?", nodes)
    with pytest.raises(RequestRefused):
        await synthesizer.asynthesize("Where?", nodes)


def test_a_structured_prediction_does_not_paper_over_a_fallback() -> None:
    prompt = PromptTemplate("Where?")
    with pytest.raises((FallbackRefused, DegradedAnswer)):
        refused().structured_predict(Place, prompt)
    with pytest.raises((FallbackRefused, DegradedAnswer)):
        list(refused().stream_structured_predict(Place, prompt))
    with pytest.raises((FallbackRefused, DegradedAnswer)):
        refused().as_structured_llm(Place).chat(user())


async def test_an_awaited_structured_prediction_does_not_paper_over_a_fallback() -> None:
    with pytest.raises((FallbackRefused, DegradedAnswer)):
        await refused().astructured_predict(Place, PromptTemplate("Where?"))


def nothing() -> str:
    """Do nothing."""
    return ""


TOOLS: list[Any] = [FunctionTool.from_defaults(nothing)]


@pytest.mark.parametrize("calls_tools", [True, False])
def test_predict_and_call_does_not_paper_over_a_fallback(calls_tools: bool) -> None:
    # For an LLM that calls no tools LlamaIndex would answer with the error's text.
    llm = refused().model_copy(update={"is_function_calling_model": calls_tools})
    with pytest.raises(FallbackRefused):
        llm.predict_and_call(TOOLS, user_msg="Go.")


@pytest.mark.parametrize("calls_tools", [True, False])
async def test_an_awaited_predict_and_call_does_not_either(calls_tools: bool) -> None:
    llm = refused().model_copy(update={"is_function_calling_model": calls_tools})
    with pytest.raises(FallbackRefused):
        await llm.apredict_and_call(TOOLS, user_msg="Go.")


@old_parts
@pytest.mark.parametrize("kind", [FunctionAgent, ReActAgent])
@pytest.mark.parametrize("streaming", [True, False])
async def test_an_agent_does_not_paper_over_a_fallback(kind: Any, streaming: bool) -> None:
    agent = kind(tools=TOOLS, llm=refused(), streaming=streaming)
    with pytest.raises(FallbackRefused):
        await agent.run("Go.")


# ---- watching ------------------------------------------------------------------------


def test_a_watch_sees_the_answers_behind_a_query() -> None:
    llm = big(Fake(big=[gone()] * 9), fallbacks=["small"], on_fallback="mark")
    engine = SummaryIndex.from_documents([Document(text="Paris.")]).as_query_engine(llm=llm)
    with watch() as seen:
        assert str(engine.query("Where?")) == OTHER
    assert [guard.served_model for guard in seen.guards] == ["small"]
    assert not seen.as_asked and seen.errors == []


def test_a_watch_over_answers_as_asked() -> None:
    with watch() as seen:
        big(Fake()).chat(user())
        list(big(Fake()).stream_chat(user()))
    assert len(seen.guards) == 2 and seen.as_asked
    big(Fake()).chat(user())
    assert len(seen.guards) == 2, "it is over"


@old_parts
async def test_a_watch_sees_what_an_agent_asks() -> None:
    agent = FunctionAgent(tools=TOOLS, llm=big(Fake()))
    with watch() as seen:
        await agent.run("Go.")
    assert [guard.served_model for guard in seen.guards] == ["big"]


def test_a_watch_sees_errors_that_somebody_caught() -> None:
    class Fixed:
        """Asks the same question of each tool."""

        def generate(self, tools: Any, query: Any) -> list[SubQuestion]:
            return [SubQuestion(sub_question="Where?", tool_name="places")]

    index = SummaryIndex.from_documents([Document(text="Paris.")])
    tool = QueryEngineTool.from_defaults(
        index.as_query_engine(llm=refused()), name="places", description="Places."
    )
    generator: Any = Fixed()
    engine = SubQuestionQueryEngine.from_defaults(
        query_engine_tools=[tool], question_gen=generator, llm=big(Fake()), use_async=False
    )
    with watch() as seen:
        engine.query("Where?")  # the sub-question's error is only logged
    assert [type(error) for error in seen.errors] == [FallbackRefused]
    assert not seen.as_asked


def test_what_a_watch_did_not_see_is_not_vouched_for() -> None:
    """A pool of threads does not take the context over."""
    llm = big(Fake(big=[ModelNotFound("gone.")] * 9), fallbacks=["small"], on_fallback="mark")
    with ThreadPoolExecutor(1) as old:
        old.submit(int).result()
        with watch() as seen:
            old.submit(llm.complete, "?").result()
        assert not seen.guards and not seen.as_asked
    with watch() as seen, ThreadPoolExecutor(1) as pool:
        big(Fake()).complete("?")
        assert seen.as_asked
        pool.submit(llm.complete, "?").result()
        assert len(seen.guards) == 1 and seen.unseen == 1 and not seen.as_asked
    with watch() as seen, ThreadPoolExecutor(1) as pool:
        pool.submit(copy_context().run, llm.complete, "?").result()
        assert seen.guards[0].fallback and not seen.unseen


def test_a_watch_does_not_mind_who_asks_elsewhere() -> None:
    with ThreadPoolExecutor(1) as elsewhere:
        elsewhere.submit(int).result()
        with watch() as seen:
            big(Fake()).complete("?")
            elsewhere.submit(big(Fake()).complete, "?").result()
        assert seen.as_asked and len(seen.guards) == 1


def test_a_stream_belongs_to_the_watch_in_which_it_was_begun() -> None:
    llm = big(Fake(big=[gone()] * 9), fallbacks=["small"], on_fallback="mark")
    with watch() as seen:
        big(Fake()).complete("?")
        stream = llm.stream_complete("?")
        assert seen.pending == 1 and not seen.as_asked
    assert not seen.as_asked
    list(stream)
    assert seen.pending == 0 and [guard.fallback for guard in seen.guards] == [False, True]
    with watch() as seen:
        big(Fake()).complete("?")
        for _ in big(Fake()).stream_chat(user()):
            break
    assert seen.pending == 1 and not seen.as_asked, "it told no end"


async def test_an_awaited_stream_does_so_too() -> None:
    with watch() as seen:
        stream = await big(Fake()).astream_complete("?")
    assert seen.pending == 1 and not seen.as_asked
    assert [piece async for piece in stream] and seen.as_asked


def test_watches_may_be_nested() -> None:
    with watch() as outer:
        big(Fake()).chat(user())
        with watch() as inner:
            big(Fake()).chat(user())
    assert (len(outer.guards), len(inner.guards)) == (2, 1)


def test_a_watch_sees_an_error_of_each_kind() -> None:
    with watch() as seen:
        with pytest.raises(GuardedLLMError):
            big(Fake(big=[InvalidRequest("no.")])).chat(user())
        with pytest.raises(GuardedLLMError):
            list(big(Fake(big=[gone()])).stream_chat(user()))
    assert [type(error) for error in seen.errors] == [InvalidRequest, ModelNotFound]


def test_settings_take_it_as_the_default_llm() -> None:
    before = Settings._llm
    try:
        Settings.llm = big(Fake())
        index = SummaryIndex.from_documents([Document(text="Paris.")])
        assert str(index.as_query_engine().query("Where?")) == RIGHT
    finally:
        Settings._llm = before
