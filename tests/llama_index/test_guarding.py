"""Fallbacks, degraded answers and retries, and what LlamaIndex makes of their errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document, Settings, SummaryIndex
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.llms import MockLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import SubQuestionQueryEngine
from llama_index.core.question_gen.types import SubQuestion
from llama_index.core.schema import TextNode
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.llms.mlx_guarded import MLXGuarded, RequestRefused, watch
from pydantic import BaseModel

from mlx_guarded_llm import Backend, Provenance, Result, RetryPolicy, taint
from mlx_guarded_llm.errors import (
    AttemptsExhausted,
    ContextOverflow,
    DegradedAnswer,
    EngineDied,
    FallbackRefused,
    GuardedLLMError,
    InvalidRequest,
    ModelNotFound,
)
from mlx_guarded_llm.testing.faulty import EMPTY, LOOP, Broken, Says
from tests.conftest import MakeModel
from tests.llama_index._helpers import ANSWERS, Fake, big, old_parts, user

RIGHT, OTHER = ANSWERS["big"], ANSWERS["small"]


def gone() -> ModelNotFound:
    """Not retried; another model may answer."""
    return ModelNotFound("no model 'big'.")


def died() -> EngineDied:
    """Worth another attempt."""
    return EngineDied("the worker died of SIGABRT.")


def by_chat(llm: MLXGuarded) -> ChatResponse:
    response: ChatResponse = llm.chat(user())
    return response


def by_stream(llm: MLXGuarded) -> ChatResponse:
    return list(llm.stream_chat(user()))[-1]


async def by_achat(llm: MLXGuarded) -> ChatResponse:
    response: ChatResponse = await llm.achat(user())
    return response


async def by_astream(llm: MLXGuarded) -> ChatResponse:
    return [response async for response in await llm.astream_chat(user())][-1]


@pytest.fixture(params=[by_chat, by_stream, by_achat, by_astream])
def ask(request: pytest.FixtureRequest) -> Callable[[MLXGuarded], Any]:
    """Each way to get the answer to one message."""
    way = request.param

    async def get(llm: MLXGuarded) -> ChatResponse:
        response = way(llm)
        return response if isinstance(response, ChatResponse) else await response

    return get


Ask = Callable[[MLXGuarded], Any]


def guard_of(response: ChatResponse) -> Provenance:
    assert isinstance(response.raw, dict)
    return Provenance.from_dict(response.raw["guard"])


# ---- the rules -----------------------------------------------------------------------


async def test_the_model_asked_for_is_asked_again(ask: Ask) -> None:
    response = await ask(big(Fake(big=[died(), died()]), fallbacks=["small"]))
    assert response.message.content == RIGHT
    guard = guard_of(response)
    assert [attempt.outcome for attempt in guard.attempts] == ["error", "error", "ok"]
    assert guard.as_asked


async def test_a_fallbacks_answer_is_an_error_that_carries_it(ask: Ask) -> None:
    with pytest.raises(FallbackRefused) as caught:
        await ask(big(Fake(big=[gone()]), fallbacks=["small"]))
    assert caught.value.answer.text == OTHER
    assert caught.value.answer.guard.fallback


async def test_a_fallbacks_answer_is_marked_when_that_is_asked_for(ask: Ask) -> None:
    response = await ask(big(Fake(big=[gone()]), fallbacks=["small"], on_fallback="mark"))
    assert response.message.content == OTHER
    assert response.raw["model"] == "small"
    guard = guard_of(response)
    assert guard.fallback and (guard.requested_model, guard.served_model) == ("big", "small")
    assert [bool(step) for step in taint([response])] == [True]


async def test_holding_a_fallback_gives_the_answer_asked_for(ask: Ask) -> None:
    retry = RetryPolicy(attempts=1, initial_wait=0, jitter=0)
    llm = big(Fake(big=[died()]), fallbacks=["small"], on_fallback="hold", retry=retry)
    response = await ask(llm)
    assert response.message.content == RIGHT and guard_of(response).as_asked


async def test_a_degraded_answer_is_asked_for_again(ask: Ask) -> None:
    response = await ask(big(Fake(big=[EMPTY]), hold_back=float("inf")))
    assert response.message.content == RIGHT
    assert [attempt.reasons for attempt in guard_of(response).attempts] == [("empty",), ()]


async def test_an_answer_that_stays_degraded_is_an_error(ask: Ask) -> None:
    llm = big(Fake(big=[LOOP] * 3), hold_back=float("inf"))
    with pytest.raises(DegradedAnswer) as caught:
        await ask(llm)
    assert caught.value.reasons == ("loop",)


async def test_a_degraded_answer_is_marked_when_that_is_asked_for(ask: Ask) -> None:
    response = await ask(big(Fake(big=[EMPTY] * 3), on_degraded="mark"))
    assert guard_of(response).degraded == ("empty",)


async def test_no_answer_at_all_is_an_error_with_its_cause(ask: Ask) -> None:
    with pytest.raises(AttemptsExhausted) as caught:
        await ask(big(Fake(big=[died()] * 3)))
    assert isinstance(caught.value.__cause__, EngineDied)
    assert caught.value.guard is not None and len(caught.value.guard.attempts) == 3


async def test_an_error_that_no_retry_mends_comes_through_as_it_is(ask: Ask) -> None:
    error = gone()
    with pytest.raises(ModelNotFound) as caught:
        await ask(big(Fake(big=[error])))
    assert caught.value is error


async def test_a_check_of_the_callers_own_refuses_an_answer(ask: Ask) -> None:
    def accept(result: Result) -> bool:
        return "two" in result.text

    llm = big(Fake(big=[Says("Forty."), Says("Forty two.")]), accept=accept, hold_back=1000)
    assert (await ask(llm)).message.content == RIGHT


@pytest.mark.parametrize(("retries", "calls"), [(0, 1), (1, 2), (4, 5)])
def test_max_retries_counts_what_comes_after_the_first(retries: int, calls: int) -> None:
    backend = Fake(big=[EMPTY] * 9)
    with pytest.raises(DegradedAnswer):
        big(backend, retry=None, max_retries=retries).chat(user())
    assert len(backend.calls) == calls


def test_the_rules_may_differ_for_a_call() -> None:
    llm = big(Fake(big=[gone(), gone()]), fallbacks=["small"])
    assert llm.chat(user(), on_fallback="mark").message.content == OTHER
    with pytest.raises(ModelNotFound):
        llm.chat(user(), fallbacks=[])


def test_a_stream_that_breaks_off_tells_so_at_its_end() -> None:
    stream = big(Fake(big=[Broken(died())]), fallbacks=["small"]).stream_chat(user())
    assert next(stream).message.content == "Half. "
    with pytest.raises(AttemptsExhausted, match="broke off"):
        next(stream)


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


def test_another_llms_answer_is_refused_by_default_too() -> None:
    with pytest.raises(FallbackRefused, match="MockLLM did"):
        big(Fake(big=[gone()]), fallbacks=[MockLLM()]).chat(user())


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
    llm = MLXGuarded(model=tiny(), backend=backend, context_window=100_000)
    index = SummaryIndex(nodes=[TextNode(text="word " * 1000)])
    engine = index.as_query_engine(llm=llm, response_mode=mode)
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
