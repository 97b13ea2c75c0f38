"""Middleware for LangChain's agents. It needs langchain: the extra `agents`."""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, NotRequired

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage

from mlx_guarded_llm import GuardedLLM, RetryPolicy
from mlx_guarded_llm.errors import GuardedLLMError, InvalidRequest
from mlx_guarded_llm.guarded import Call, Candidate, provenance_of
from mlx_guarded_llm.guarded.checks import Accept
from mlx_guarded_llm.guarded.course import OnDegraded, OnFallback
from mlx_guarded_llm.guarded.deadline import awithin, within
from mlx_guarded_llm.results import Provenance, Result

from .answers import result_of
from .candidate import ChatModelFailed, failures, name_of
from .chat_models import ChatMLXGuarded
from .errors import framework_errors
from .options import SAMPLING

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
    )
    from langgraph.errors import GraphBubbleUp
    from langgraph.types import Command
except ImportError as error:
    raise ImportError(
        "The middleware is for langchain's agents, and langchain is not installed: "
        'pip install "langchain-mlx-guarded[agents]"'
    ) from error

Handler = Callable[[ModelRequest[Any]], ModelResponse[Any]]
AsyncHandler = Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]


class GuardedState(AgentState[Any]):
    """The agent's state, and where each answer of its model came from, in order."""

    guard: NotRequired[Annotated[list[dict[str, Any]], operator.add]]


class GuardedModelMiddleware(AgentMiddleware[GuardedState, Any, Any]):
    """Retries and fallbacks for the model of an agent, whoever makes that model.

    It differs from `ModelRetryMiddleware` and `ModelFallbackMiddleware` of langchain in
    what it never does: an error's text is no answer, and another model's answer is not
    passed off as that of the model asked for. With on_fallback="mark" it is returned, and
    says so in `response_metadata["guard"]` and in the agent's state under "guard".

        from langchain.agents import create_agent
        from langchain_core.language_models import FakeListChatModel

        from langchain_mlx_guarded import ChatMLXGuarded
        from langchain_mlx_guarded.middleware import GuardedModelMiddleware
        from mlx_guarded_llm import taint

        cloud = FakeListChatModel(responses=["Paris."])  # stands for any chat model
        guarded = GuardedModelMiddleware(fallbacks=[cloud], on_fallback="mark")
        agent = create_agent(ChatMLXGuarded(model="no-such-model"), middleware=[guarded])
        state = agent.invoke({"messages": [("user", "The capital of France?")]})
        print(state["messages"][-1].content, state["guard"][-1]["served_model"])
        print(taint(state["messages"])[-1].own)  # ('fallback',)

    A `ChatMLXGuarded` has used up its own attempts when its error comes here, and is not
    asked again; only the fallbacks are.

    Args:
        fallbacks: chat models to ask when the agent's own gives no full answer, in order.
        on_fallback: "raise" `FallbackRefused`, "mark", or "hold"; see
            `mlx_guarded_llm.GuardedLLM`.
        on_degraded: "raise" `DegradedAnswer`, or "mark".
        retry: how often, how long, with what pauses.
        accept: called with each full `Result`; False asks for another one.

    Raises:
        InvalidRequest: an argument is wrong.
    """

    state_schema = GuardedState

    def __init__(
        self,
        *,
        fallbacks: Sequence[BaseChatModel] = (),
        on_fallback: OnFallback = "raise",
        on_degraded: OnDegraded = "raise",
        retry: RetryPolicy | None = None,
        accept: Accept | None = None,
    ) -> None:
        super().__init__()
        self.tools = []
        self._fallbacks = tuple(fallbacks)
        self._rules: dict[str, Any] = {
            "on_fallback": on_fallback,
            "on_degraded": on_degraded,
            "retry": retry,
            "accept": accept,
        }
        with framework_errors():
            for model in self._fallbacks:
                if not isinstance(model, BaseChatModel):
                    raise InvalidRequest(f"the fallback {model!r} is no chat model.")
            GuardedLLM(None, _Step.__new__(_Step), **self._rules)  # checks the rules

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Handler
    ) -> ExtendedModelResponse[Any]:
        """Ask the agent's model, again if need be, and then the fallbacks."""
        steps = self._steps(request, handler)
        llm = GuardedLLM(None, steps[0], fallbacks=steps[1:], **self._rules)
        with framework_errors(), _unwrapped():
            return _marked(llm.generate("", **_limits(request)), steps)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: AsyncHandler
    ) -> ExtendedModelResponse[Any]:
        """As `wrap_model_call`."""
        steps = self._steps(request, handler)
        llm = GuardedLLM(None, steps[0], fallbacks=steps[1:], **self._rules)
        with framework_errors(), _unwrapped():
            return _marked(await llm.agenerate("", **_limits(request)), steps)

    def _steps(self, request: ModelRequest[Any], handler: Callable[..., Any]) -> list[_Step]:
        models = (request.model, *self._fallbacks)
        return [_Step(request.override(model=model), handler) for model in models]


class _Step(Candidate):
    """One model's answer to what the agent asks. The prompt is in the agent's request."""

    errors = (GuardedLLMError,)

    def __init__(self, request: ModelRequest[Any], handler: Callable[..., Any]) -> None:
        self.name = name_of(request.model)
        self.answers: dict[str, ModelResponse[Any]] = {}  # by the request id in their guard
        self._request = request
        self._handler = handler

    def generate(self, call: Call) -> Result:
        request = self._changed(call)
        with failures(GraphBubbleUp):
            response = within(call.timeout, self.name, lambda: self._handler(request))
        return self._result(response, call)

    async def agenerate(self, call: Call) -> Result:
        request = self._changed(call)
        with failures(GraphBubbleUp):
            response = await awithin(call.timeout, self.name, self._handler(request))
        return self._result(response, call)

    def _changed(self, call: Call) -> ModelRequest[Any]:
        """With what is to be different this time; only ours takes all of it."""
        if not isinstance(self._request.model, ChatMLXGuarded):
            return self._request
        settings = {**self._request.model_settings, **call.options}
        return self._request.override(model_settings=settings)

    def _result(self, response: ModelResponse[Any], call: Call) -> Result:
        message = next(m for m in response.result if isinstance(m, AIMessage))
        result = result_of(message, model=self.name, request_id=call.request_id)
        self.answers[result.guard.request_id] = response
        return result


def _limits(request: ModelRequest[Any]) -> dict[str, Any]:
    """How the model was told to answer: what it cut off by that is what was asked for."""
    model, settings = request.model, request.model_settings
    if isinstance(model, ChatMLXGuarded):
        return {**model.sampling(), **{k: v for k, v in settings.items() if k in SAMPLING}}
    limit = settings.get("max_tokens", getattr(model, "max_tokens", None))
    return {"max_tokens": limit} if isinstance(limit, int) else {}


def _marked(result: Result, steps: Sequence[_Step]) -> ExtendedModelResponse[Any]:
    """The response behind a result, with its provenance in the message and in the state."""
    answers = (step.answers.get(result.guard.request_id) for step in steps)
    response = next(answer for answer in answers if answer is not None)
    messages: list[BaseMessage] = []
    guards: list[dict[str, Any]] = []
    for message in response.result:
        if isinstance(message, AIMessage):
            guards.append(_with_own_marks(result.guard, provenance_of(message)).as_dict())
            metadata = {**message.response_metadata, "guard": guards[-1]}
            messages.append(message.model_copy(update={"response_metadata": metadata}))
        else:
            messages.append(message)
    return ExtendedModelResponse(
        model_response=replace(response, result=messages),
        command=Command(update={"guard": guards}),
    )


def _with_own_marks(guard: Provenance, own: Provenance | None) -> Provenance:
    """A chat model of ours may have marked its answer itself, and that stays."""
    if own is None:
        return guard
    degraded = tuple(dict.fromkeys((*own.degraded, *guard.degraded)))
    return replace(guard, fallback=guard.fallback or own.fallback, degraded=degraded)


@contextmanager
def _unwrapped() -> Iterator[None]:
    """An error that nothing could be tried about is raised as the model raised it."""
    try:
        yield
    except ChatModelFailed as error:
        raise error.__cause__ or error from None
