"""Middleware for LangChain's agents. It needs langchain: the extra `agents`."""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Any, NotRequired

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from mlx_guarded_llm import GuardedLLM, RetryPolicy
from mlx_guarded_llm.errors import GuardedLLMError, InvalidRequest
from mlx_guarded_llm.fallback import Call
from mlx_guarded_llm.fallback.attempts import OnDegraded, OnFallback
from mlx_guarded_llm.fallback.checks import Accept
from mlx_guarded_llm.fallback.deadline import awithin, within
from mlx_guarded_llm.fallback.external import ExternalModel, plain_names, renamed
from mlx_guarded_llm.results import Result

from .answers import answer_of, message_of
from .candidate import ChatModelFailed, failures, name_of, provider_of
from .chat_models import ChatMLXGuarded
from .errors import framework_errors
from .messages import with_names, without_calls
from .options import SAMPLING, tool_choice

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
    )
    from langchain.agents.structured_output import ToolStrategy
    from langgraph.errors import GraphBubbleUp
    from langgraph.types import Command
except ImportError as error:
    raise ImportError(
        f"The middleware is for langchain's agents, which cannot be imported ({error}): "
        'pip install --upgrade "langchain-mlx-guarded[agents]"'
    ) from error

Handler = Callable[[ModelRequest[Any]], ModelResponse[Any]]
AsyncHandler = Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]


class GuardedState(AgentState[Any]):
    """The agent's state, and where each answer of its model came from, in order."""

    guard: NotRequired[Annotated[list[dict[str, Any]], operator.add]]


class GuardedModelMiddleware(AgentMiddleware[GuardedState, Any, Any]):
    """Retries and fallbacks for the model of an agent, whoever makes that model.

    Unlike `ModelRetryMiddleware` and `ModelFallbackMiddleware` of langchain, it never makes an
    error's text an answer, and never passes another model's answer off as that of the model
    asked for. With on_fallback="mark" it is returned, and
    says so in `response_metadata["guard"]` and in the agent's state under "guard".

        from langchain.agents import create_agent
        from langchain_core.language_models import FakeListChatModel

        from langchain_mlx_guarded import ChatMLXGuarded
        from langchain_mlx_guarded.middleware import GuardedModelMiddleware
        from mlx_guarded_llm import taint

        cloud = FakeListChatModel(responses=["Paris."])  # stands in for any chat model
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
            return _marked(llm.generate("", **_limits(request), **_held(request)), steps)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: AsyncHandler
    ) -> ExtendedModelResponse[Any]:
        """As `wrap_model_call`."""
        steps = self._steps(request, handler)
        llm = GuardedLLM(None, steps[0], fallbacks=steps[1:], **self._rules)
        with framework_errors(), _unwrapped():
            result = await llm.agenerate("", **_limits(request), **_held(request))
            return _marked(result, steps)

    def _steps(self, request: ModelRequest[Any], handler: Callable[..., Any]) -> list[_Step]:
        own = type(request.model)
        return [
            _Step(request, handler),
            *(
                _Step(request.override(model=model), handler, alike=type(model) is own)
                for model in self._fallbacks
            ),
        ]


class _Step(ExternalModel):
    """One model's answer to what the agent asks. The prompt is in the agent's request.

    Args:
        request: of the agent.
        handler: asks its model.
        alike: the agent's settings are meant for a model of this class. A model of another
            class gets only those that all models know, since it may fail on the others.
    """

    errors = (GuardedLLMError,)

    def __init__(
        self, request: ModelRequest[Any], handler: Callable[..., Any], *, alike: bool = True
    ) -> None:
        super().__init__(name_of(request.model), request.model)
        self.answers: dict[str, ModelResponse[Any]] = {}  # by the request id in their guard
        self._request = request
        self._handler = handler
        self._alike = alike

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

    def takes(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Only ours takes all of it."""
        return options if self._is_ours else super().takes(options)

    @property
    def _is_ours(self) -> bool:
        return isinstance(self.model, ChatMLXGuarded)

    def fitted(self, result: Result, options: Mapping[str, Any]) -> Result:
        """Another middleware may have added tools on the way, which the agent looks after."""
        known = options.get("tools") or ()
        names = {tool["function"]["name"] for tool in known}
        added = [{"function": {"name": c.name}} for c in result.tool_calls if c.name not in names]
        return super().fitted(result, {**options, "tools": [*known, *added]})

    def _changed(self, call: Call) -> ModelRequest[Any]:
        """With what is to be different this time, and settings that are meant for the model."""
        request = self._request
        settings = request.model_settings
        changes = {k: v for k, v in call.options.items() if k not in _HELD}
        if self._is_ours:
            meant = {k: v for k, v in settings.items() if self._alike or k in SAMPLING}
            return request.override(model_settings={**meant, **changes})
        if names := plain_names(call.options):
            request = _with_names(request, names)
        if self._alike:
            return request.override(model=self.set_up(changes))
        return request.override(
            model=self.set_up({**settings, **changes}),
            model_settings={k: v for k, v in settings.items() if k == "stop"},
        )

    def _result(self, response: ModelResponse[Any], call: Call) -> Result:
        if not self._is_ours and (names := plain_names(call.options)):
            own = {plain: name for name, plain in names.items()}
            messages = [with_names(message, own) for message in response.result]
            response = replace(response, result=messages)
        message = next(m for m in response.result if isinstance(m, AIMessage))
        result = self.result(call, answer_of(message, provider_of(self.model)))
        self.answers[result.guard.request_id] = response
        return result


_HELD = ("tools", "tool_choice")


def _held(request: ModelRequest[Any]) -> dict[str, Any]:
    """The tools and the choice that an answer is checked against; the handler sends them."""
    form = request.response_format
    tools = [_openai_tool(tool) for tool in request.tools]
    choice = request.tool_choice
    if isinstance(form, ToolStrategy):  # the agent asks again itself for what does not fit
        tools += [{"type": "function", "function": {"name": s.name}} for s in form.schema_specs]
        choice = "any"
    offered = [tool for tool in tools if tool is not None]
    if not offered:
        return {}
    try:
        return {"tools": offered, "tool_choice": tool_choice(choice, offered)}
    except InvalidRequest:  # in the words of one provider, or for a tool of its server's
        return {"tools": offered}


def _openai_tool(tool: Any) -> dict[str, Any] | None:
    """None for what a provider's server calls itself."""
    if isinstance(tool, dict) and not {"function", "input_schema", "parameters"} & tool.keys():
        return None
    return convert_to_openai_tool(tool)


def _with_names(request: ModelRequest[Any], names: Mapping[str, str]) -> ModelRequest[Any]:
    """The request with names of tools that every service takes."""
    tools = []
    for tool in request.tools:
        plain = _openai_tool(tool)
        name = plain and plain["function"]["name"]
        tools.append(renamed(plain, names) if plain and name in names else tool)
    choice: Any = request.tool_choice
    if isinstance(choice, Mapping) and "function" in choice:
        choice = renamed(choice, names)
    elif isinstance(choice, str):
        choice = names.get(choice, choice)
    messages: list[Any] = [with_names(message, names) for message in request.messages]
    return request.override(tools=tools, tool_choice=choice, messages=messages)


def _limits(request: ModelRequest[Any]) -> dict[str, Any]:
    """The limits that the model was given: an answer that they cut off is what was asked for."""
    model, settings = request.model, request.model_settings
    if isinstance(model, ChatMLXGuarded):
        return {**model.sampling(), **{k: v for k, v in settings.items() if k in SAMPLING}}
    limit = settings.get("max_tokens", getattr(model, "max_tokens", None))
    return {"max_tokens": limit} if isinstance(limit, int) else {}


def _marked(result: Result, steps: Sequence[_Step]) -> ExtendedModelResponse[Any]:
    """The response behind a result, with its provenance in the message and in the state."""
    answers = (step.answers.get(result.guard.request_id) for step in steps)
    response = next(answer for answer in answers if answer is not None)
    guard = result.guard.as_dict()
    messages = [_with_result(m, result) if isinstance(m, AIMessage) else m for m in response.result]
    return ExtendedModelResponse(
        model_response=replace(response, result=messages),
        command=Command(update={"guard": [guard]}),
    )


def _with_result(message: AIMessage, result: Result) -> AIMessage:
    """A message with what was made of it: a call that fits no tool is none any more."""
    update: dict[str, Any] = {
        "response_metadata": {**message.response_metadata, "guard": result.guard.as_dict()}
    }
    if len(result.tool_calls) < len(message.tool_calls):
        made = message_of(result)
        update |= {"tool_calls": made.tool_calls, "invalid_tool_calls": made.invalid_tool_calls}
        if isinstance(message.content, list):
            kept = {call.id for call in result.tool_calls}
            update["content"] = without_calls(message.content, but=kept)
    if result.text != str(message.text):
        update["content"] = result.text
    return message.model_copy(update=update)


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise the model's own error where no other attempt could be made."""
    try:
        yield
    except ChatModelFailed as error:
        raise error.__cause__ or error from None
