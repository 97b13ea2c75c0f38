"""The agent middleware, with failing chat models and with a real small one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
)
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core import exceptions as theirs
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from langchain_mlx_guarded import ChatMLXGuarded
from langchain_mlx_guarded.middleware import GuardedModelMiddleware
from mlx_guarded_llm import Backend, RetryPolicy, taint
from mlx_guarded_llm.errors import (
    AttemptsExhausted,
    DegradedAnswer,
    EngineDied,
    FallbackRefused,
    InvalidRequest,
)
from mlx_guarded_llm.testing.faulty import EMPTY, FaultyBackend, Says
from tests.conftest import MakeModel

from .test_framework import both
from .test_retries import Cloud

SOON = RetryPolicy(initial_wait=0, jitter=0)
QUESTION: Any = {"messages": [("user", "6 * 7?")]}
BUSY = theirs.ModelRateLimitError("busy")


class Moody(Cloud):
    """Fails as planned, and then answers."""

    moods: list[Any]

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        mood = self.moods.pop(0) if self.moods else None
        self.error = mood if isinstance(mood, Exception) else None
        answer, self.answer = self.answer, mood if isinstance(mood, str) else self.answer
        try:
            return super()._generate(*args, **kwargs)
        finally:
            self.answer = answer


async def run(agent: Any, is_async: bool, **config: Any) -> Any:
    return await agent.ainvoke(QUESTION, **config) if is_async else agent.invoke(QUESTION, **config)


def moody(*moods: Any, answer: Any = "Forty two.") -> Moody:
    return Moody(moods=list(moods), answer=answer)


class Warm(Moody):
    """It has settings that its owner left open."""

    temperature: float | None = None
    seed: int | None = None


def warm(*moods: Any) -> Warm:
    return Warm(moods=list(moods), answer="Forty two.")


def agent_of(model: Any, *, tools: Any = (), **options: Any) -> Any:
    guarded = GuardedModelMiddleware(**({"retry": SOON} | options))
    return create_agent(model, tools=tools, middleware=[guarded])


# ---- what langchain's own do wrong -----------------------------------------------------------


def test_langchains_retry_gives_an_error_text_as_the_answer() -> None:
    """The reason for ours: this is how it looks there."""
    middleware = ModelRetryMiddleware(max_retries=1, initial_delay=0, jitter=False)
    state = create_agent(moody(BUSY, BUSY), middleware=[middleware]).invoke(QUESTION)
    assert "busy" in state["messages"][-1].content


def test_langchains_fallback_does_not_say_who_answered() -> None:
    middleware = ModelFallbackMiddleware(Cloud())
    state = create_agent(moody(BUSY), middleware=[middleware]).invoke(QUESTION)
    assert state["messages"][-1].response_metadata == {}


# ---- ours ------------------------------------------------------------------------------------


@both
async def test_a_failed_call_is_tried_again_and_marked(is_async: bool) -> None:
    state = await run(agent_of(moody(BUSY, ConnectionError("gone"))), is_async)
    message = state["messages"][-1]
    assert message.content == "Forty two."
    guard = message.response_metadata["guard"]
    assert [attempt["outcome"] for attempt in guard["attempts"]] == ["error", "error", "ok"]
    assert guard["served_model"] == "cloud-1"
    assert guard["fallback"] is False
    assert state["guard"] == [guard]


@both
async def test_an_errors_text_is_never_the_answer(is_async: bool) -> None:
    with pytest.raises(AttemptsExhausted) as caught:
        await run(agent_of(moody(*[BUSY] * 9)), is_async)
    assert caught.value.guard is not None
    assert len(caught.value.guard.attempts) == 3
    assert isinstance(caught.value, theirs.ModelError)


@both
async def test_an_error_that_no_retry_mends_is_raised_as_it_came(is_async: bool) -> None:
    model = moody(theirs.ModelAuthenticationError("who?"))
    with pytest.raises(theirs.ModelAuthenticationError, match="who"):
        await run(agent_of(model), is_async)
    assert len(model.seen) == 1


@both
async def test_a_fallbacks_answer_is_refused_or_marked(is_async: bool) -> None:
    fallback = Cloud(answer="About forty.")
    with pytest.raises(FallbackRefused) as caught:
        await run(agent_of(moody(*[BUSY] * 3), fallbacks=[fallback]), is_async)
    assert caught.value.answer.text == "About forty."
    agent = agent_of(moody(*[BUSY] * 3), fallbacks=[fallback], on_fallback="mark")
    state = await run(agent, is_async)
    assert state["messages"][-1].content == "About forty."
    assert state["messages"][-1].response_metadata["guard"]["fallback"] is True
    assert [bool(step) for step in taint(state["messages"])] == [False, True]


@both
async def test_held_insurance_gives_way_to_the_models_own_answer(is_async: bool) -> None:
    agent = agent_of(moody(*[BUSY] * 4), fallbacks=[Cloud(answer="No.")], on_fallback="hold")
    state = await run(agent, is_async)
    assert state["messages"][-1].content == "Forty two."
    assert state["guard"][0]["fallback"] is False


@both
async def test_a_degraded_answer_is_asked_for_again_and_never_passed_off(is_async: bool) -> None:
    model = warm("", " ")
    state = await run(agent_of(model), is_async)
    assert state["messages"][-1].content == "Forty two."
    attempts = state["guard"][0]["attempts"]
    seeds = {attempt["changed"].get("seed") for attempt in attempts}
    assert len(seeds) == 3 and None in seeds
    with pytest.raises(DegradedAnswer):
        await run(agent_of(warm(*[""] * 9)), is_async)
    check = agent_of(warm("No idea."), accept=lambda result: "two" in result.text)
    assert (await run(check, is_async))["messages"][-1].content == "Forty two."


@both
async def test_a_model_that_no_change_reaches_is_not_asked_the_same_again(is_async: bool) -> None:
    model = moody("", "")
    with pytest.raises(DegradedAnswer):
        await run(agent_of(model), is_async)
    assert len(model.seen) == 1


@both
async def test_tools_are_used_and_each_answer_is_noted(is_async: bool) -> None:
    @tool
    def multiply(a: int, b: int) -> int:
        """Multiply."""
        return a * b

    call = {"name": "multiply", "args": {"a": 6, "b": 7}, "id": "c1", "type": "tool_call"}
    calls = Cloud(answer=AIMessage("", tool_calls=[call]))

    class Solver(Cloud):
        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            if messages[-1].type != "tool":
                raise BUSY
            return super()._generate(messages, *args, **kwargs)

    solver = Solver(answer="It is 42.")
    agent = agent_of(solver, tools=[multiply], fallbacks=[calls], on_fallback="mark")
    state = await run(agent, is_async)
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert state["messages"][2].content == "42"
    assert [guard["fallback"] for guard in state["guard"]] == [True, False]
    steps = taint(state["messages"])
    assert [step.own for step in steps] == [(), ("fallback",), (), ()]
    assert steps[3].inherited == (1,)  # the answer rests on a fallback's call


class Answer(BaseModel):
    """The answer."""

    number: int


@both
@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
async def test_structured_responses_come_through(strategy: Any, is_async: bool) -> None:
    answer: Any = '{"number": 42}'
    if strategy is ToolStrategy:
        call = {"name": "Answer", "args": {"number": 42}, "id": "c1", "type": "tool_call"}
        answer = AIMessage("", tool_calls=[call])
    agent = create_agent(
        moody(BUSY, answer=answer),
        middleware=[GuardedModelMiddleware(retry=SOON)],
        response_format=strategy(Answer),
    )
    state = await run(agent, is_async)
    assert state["structured_response"] == Answer(number=42)
    assert len(state["guard"][0]["attempts"]) == 2


@both
async def test_an_interrupt_is_no_failure(is_async: bool) -> None:
    from langgraph.checkpoint.memory import InMemorySaver

    class AsksPeople(AgentMiddleware[Any, Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            interrupt("May I?")
            return handler(request)

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            interrupt("May I?")
            return await handler(request)

    agent = create_agent(
        moody(),
        middleware=[GuardedModelMiddleware(retry=SOON), AsksPeople()],
        checkpointer=InMemorySaver(),
    )
    config: Any = {"configurable": {"thread_id": "1"}}
    state = await run(agent, is_async, config=config)
    assert state["__interrupt__"][0].value == "May I?"
    resumed: Any = Command(resume="yes")
    again = await agent.ainvoke(resumed, config) if is_async else agent.invoke(resumed, config)
    assert again["messages"][-1].content == "Forty two."


def test_a_model_that_hangs_is_left_at_the_deadline() -> None:
    import threading

    release = threading.Event()

    class Hangs(Cloud):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            release.wait()
            return super()._generate(*args, **kwargs)

    hasty = RetryPolicy(attempts=1, attempt_timeout=0.05, initial_wait=0, jitter=0)
    agent = agent_of(Hangs(), fallbacks=[Cloud(answer="Yes.")], on_fallback="mark", retry=hasty)
    try:
        state = agent.invoke(QUESTION)
    finally:
        release.set()
    assert state["messages"][-1].content == "Yes."
    assert "RequestTimeout" in state["guard"][0]["attempts"][0]["error"]


# ---- settings and checks -----------------------------------------------------------------------


class Settings(AgentMiddleware[Any, Any, Any]):
    """Another middleware, which sets options of the agent's model."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._settings = settings

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(model_settings=self._settings))

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        return await handler(request.override(model_settings=self._settings))


@both
async def test_settings_of_one_kind_of_model_are_not_another_kinds(is_async: bool) -> None:
    backend: Any = FaultyBackend(faults={"m": [EngineDied("dead.")] * 9})
    ours = ChatMLXGuarded(model="m", backend=backend, max_retries=0)
    cloud, tempered = Cloud(), warm()
    options = Settings(thinking=False, top_k=5, temperature=0.2, stop=["END"])
    for fallback in (cloud, tempered):
        guarded = GuardedModelMiddleware(
            fallbacks=[fallback], on_fallback="mark", retry=RetryPolicy(attempts=1)
        )
        await run(create_agent(ours, middleware=[options, guarded]), is_async)
        assert fallback.seen[0][1] == {"stop": ["END"]}
    assert backend.calls[0][1]["top_k"] == 5
    assert tempered.temperature is None


@both
async def test_ours_as_a_fallback_takes_the_settings_that_it_knows(is_async: bool) -> None:
    backend: Any = FaultyBackend(answers={"m": "Yes."})
    ours = ChatMLXGuarded(model="m", backend=backend)
    guarded = GuardedModelMiddleware(fallbacks=[ours], on_fallback="mark", retry=SOON)
    options = Settings(reasoning_effort="low", temperature=0.2)
    state = await run(create_agent(moody(*[BUSY] * 9), middleware=[options, guarded]), is_async)
    assert state["messages"][-1].content == "Yes."
    assert backend.calls[0][1]["temperature"] == 0.2


class Strict(Cloud):
    """Its service takes plain names of tools only, and gives its calls as blocks, too."""

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        tools = [convert_to_openai_tool(tool) for tool in kwargs["tools"]]
        names = [tool["function"]["name"] for tool in tools]
        assert names == ["clock_now", "clock_now_2"]
        told = [m for m in messages if isinstance(m, ToolMessage)]
        assert [m.name for m in told] == ["clock_now_2"] * len(told)
        before = [m.tool_calls[0]["name"] for m in messages if isinstance(m, AIMessage)]
        assert before == ["clock_now_2"] * len(told)
        if told:
            self.answer = "It is noon."
        else:
            block = {"type": "tool_use", "id": "c", "name": "clock_now_2", "input": {}}
            call = {"name": "clock_now_2", "args": {}, "id": "c"}
            self.answer = AIMessage([block], tool_calls=[call])
        return super()._generate(messages, *args, **kwargs)


@both
@pytest.mark.parametrize("role", ["model", "fallback"])
async def test_odd_names_of_tools_are_plain_ones_to_other_models(role: str, is_async: bool) -> None:
    @tool("clock_now")
    def other() -> str:
        """Tell no time."""
        return "never"

    @tool("clock.now")
    def clock() -> str:
        """Tell the time."""
        return "noon"

    cloud = Strict()
    agent = agent_of(
        cloud if role == "model" else moody(*[BUSY] * 9),
        tools=[other, clock],
        fallbacks=[] if role == "model" else [cloud],
        on_fallback="mark",
    )
    messages = (await run(agent, is_async))["messages"]
    assert messages[-1].content == "It is noon."
    assert messages[1].tool_calls[0]["name"] == messages[1].content[0]["name"] == "clock.now"
    assert (messages[2].name, messages[2].content) == ("clock.now", "noon")


@both
async def test_a_call_that_does_not_fit_its_tool_is_never_made(is_async: bool) -> None:
    made: list[Any] = []

    @tool
    def add(a: int) -> int:
        """Add."""
        made.append(a)
        return a

    call = {"name": "add", "args": {"a": "one"}, "id": "c1", "type": "tool_call"}
    model = moody(answer=AIMessage("", tool_calls=[call]))
    with pytest.raises(DegradedAnswer) as caught:
        await run(agent_of(model, tools=[add]), is_async)
    assert caught.value.reasons == ("tool_call",)
    state = await run(agent_of(model, tools=[add], on_degraded="mark"), is_async)
    assert state["messages"][-1].tool_calls == []
    assert len(state["messages"][-1].invalid_tool_calls) == 1
    text: Any = {"type": "text", "text": "I add."}
    block = {"type": "tool_use", "name": "add", "input": {"a": "one"}, "id": "c1"}
    model = moody(answer=AIMessage([text, block], tool_calls=[call]))
    state = await run(agent_of(model, tools=[add], on_degraded="mark"), is_async)
    assert state["messages"][-1].content == [text]
    assert made == []


# ---- with our own chat model -----------------------------------------------------------------


@both
async def test_a_local_agent_runs_under_it(
    backend: Backend, scripted: MakeModel, is_async: bool
) -> None:
    chat = ChatMLXGuarded(model=scripted("Forty two."), backend=backend)
    state = await run(agent_of(chat), is_async)
    assert state["messages"][-1].content == "Forty two."
    (guard,) = state["guard"]
    assert guard["served_model"] == chat.model_name
    assert guard["fingerprint"]
    assert guard["decode"] > 0


@both
async def test_its_attempts_do_not_multiply(is_async: bool) -> None:
    backend: Any = FaultyBackend(faults={"m": [EngineDied("dead.")] * 99})
    chat = ChatMLXGuarded(model="m", backend=backend, retry=SOON)
    with pytest.raises(AttemptsExhausted):
        await run(agent_of(chat), is_async)
    assert len(backend.calls) == 3  # not 9


@both
async def test_what_it_marked_as_degraded_is_asked_for_with_something_changed(
    is_async: bool,
) -> None:
    backend: Any = FaultyBackend(faults={"m": [EMPTY]}, answers={"m": "Forty two."})
    chat = ChatMLXGuarded(
        model="m", backend=backend, on_degraded="mark", retry=RetryPolicy(attempts=1), seed=1
    )
    state = await run(agent_of(chat), is_async)
    assert state["messages"][-1].content == "Forty two."
    first, second = (options for _, options in backend.calls)
    assert first["seed"] != second["seed"]


@both
async def test_what_it_marked_itself_stays_marked(is_async: bool) -> None:
    faults = {"m": [EngineDied("dead.")]}
    backend: Any = FaultyBackend(faults=faults, answers={"n": "About forty."})
    once = RetryPolicy(attempts=1)
    chat = ChatMLXGuarded(
        model="m", backend=backend, fallbacks=["n"], on_fallback="mark", retry=once
    )
    state = await run(agent_of(chat), is_async)
    assert state["guard"][0]["fallback"] is True
    assert taint(state["messages"])[-1].own == ("fallback",)
    backend = FaultyBackend(answers={"m": "No idea."})
    chat = ChatMLXGuarded(
        model="m", backend=backend, accept=lambda r: False, on_degraded="mark", retry=once
    )
    state = await run(agent_of(chat), is_async)
    assert state["guard"][0]["degraded"] == ["refused"]


@both
async def test_an_answer_cut_at_its_own_max_tokens_is_what_was_asked_for(is_async: bool) -> None:
    backend: Any = FaultyBackend(faults={"m": [Says("Forty", "", "length")]})
    ours = ChatMLXGuarded(model="m", backend=backend, max_tokens=3)
    cut = AIMessage("Forty", response_metadata={"finish_reason": "length"})

    class Limited(Cloud):
        max_tokens: int = 3

    for model in (ours, Limited(answer=cut)):
        state = await run(agent_of(model), is_async)
        assert state["messages"][-1].content == "Forty"
        assert state["guard"][0]["capped"] and state["guard"][0]["degraded"] == []
    with pytest.raises(DegradedAnswer):
        await run(agent_of(Cloud(answer=cut)), is_async)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"on_fallback": "ignore"}, "on_fallback"),
        ({"fallbacks": ["gpt"]}, "no chat model"),
        ({"accept": 3}, "accept"),
    ],
)
def test_wrong_arguments_are_told_at_once(arguments: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        GuardedModelMiddleware(**arguments)


def test_without_langchain_it_says_what_to_install() -> None:
    script = textwrap.dedent("""
        import sys
        sys.modules["langchain"] = None
        import langchain_mlx_guarded
        try:
            import langchain_mlx_guarded.middleware
        except ImportError as error:
            print(error)
    """)
    found = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert 'pip install --upgrade "langchain-mlx-guarded[agents]"' in found.stdout


@both
async def test_what_does_not_fit_a_strategys_tool_is_left_to_the_agent(is_async: bool) -> None:
    """It tells the model what was wrong, and asks again."""

    def call(number: Any) -> AIMessage:
        args = {"number": number}
        return AIMessage(
            "", tool_calls=[{"name": "Answer", "args": args, "id": "c", "type": "tool_call"}]
        )

    class Learns(Cloud):
        def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            self.answer = call(42 if messages[-1].type == "tool" else "many")
            return super()._generate(messages, *args, **kwargs)

    agent = create_agent(
        Learns(),
        middleware=[GuardedModelMiddleware(retry=SOON)],
        response_format=ToolStrategy(Answer),
    )
    assert (await run(agent, is_async))["structured_response"] == Answer(number=42)
