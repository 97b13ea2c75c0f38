"""Any chat model of LangChain as one that `GuardedLLM` can ask."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig

from mlx_guarded_llm.errors import GuardedLLMError, InvalidRequest
from mlx_guarded_llm.guarded import Call, Candidate
from mlx_guarded_llm.guarded.deadline import awithin, within
from mlx_guarded_llm.results import Result

from .answers import result_of

# The answer is traced as that of the model that asked. A second run in the same trace
# would stream its tokens and count its usage twice.
_SILENT = RunnableConfig(callbacks=[])


class ChatModelFailed(GuardedLLMError):
    """A chat model of another package raised; `__cause__` is its error."""

    fallback = True


class ChatModelFailedForNow(ChatModelFailed):
    """The same, and it may answer when asked again."""

    retryable = True


class LangChainCandidate(Candidate):
    """A chat model of LangChain, such as one in the cloud, as a fallback.

    Tools, `tool_choice`, `stop` and a schema reach it. How it samples stays as its owner
    set it up: providers differ in what they take.

        from langchain_core.language_models import FakeListChatModel

        from langchain_mlx_guarded import LangChainCandidate
        from mlx_guarded_llm.guarded import Call

        candidate = LangChainCandidate(FakeListChatModel(responses=["Paris."]))
        print(candidate.generate(Call(prompt="The capital of France?")).text)  # Paris.

    Args:
        model: the chat model; its own retries, if any, are made within one attempt.
    """

    errors = (GuardedLLMError,)

    def __init__(self, model: BaseChatModel) -> None:
        self.name = name_of(model)
        self._model = model

    def generate(self, call: Call) -> Result:
        with failures():
            model, messages = self._prepare(call)
            answer = within(call.timeout, self.name, lambda: model.invoke(messages, _SILENT))
        return self._result(answer, call)

    async def agenerate(self, call: Call) -> Result:
        with failures():
            model, messages = self._prepare(call)
            answer = await awithin(call.timeout, self.name, model.ainvoke(messages, _SILENT))
        return self._result(answer, call)

    def _prepare(self, call: Call) -> tuple[Runnable[Any, Any], list[BaseMessage]]:
        options = call.options
        for name in ("regex", "grammar"):
            if options.get(name) is not None:
                raise InvalidRequest(f"{self.name} cannot hold its answer to a {name}.")
        prompt = call.prompt
        messages: list[BaseMessage] = (
            [HumanMessage(prompt)]
            if isinstance(prompt, str)
            else convert_to_messages([dict(message) for message in prompt])
        )
        model: Runnable[Any, Any] = self._model
        if options.get("tools") and options.get("tool_choice") != "none":
            model = self._model.bind_tools(options["tools"], **_tool_arguments(options))
        elif isinstance(options.get("schema"), Mapping):
            schema = {"title": "Answer", **options["schema"]}
            try:
                return self._model.with_structured_output(schema, include_raw=True), messages
            except NotImplementedError:
                pass  # it may write JSON all the same; the answer is checked
        if options.get("stop"):
            model = model.bind(stop=list(options["stop"]))
        return model, messages

    def _result(self, answer: Any, call: Call) -> Result:
        if isinstance(answer, AIMessage):
            return result_of(answer, model=self.name, request_id=call.request_id)
        # of with_structured_output: what was parsed is the answer, however it was obtained
        raw: AIMessage = answer["raw"]
        if (parsed := answer["parsed"]) is not None:
            text = json.dumps(parsed, ensure_ascii=False)
            raw = raw.model_copy(update={"content": text, "tool_calls": []})
        return result_of(raw, model=self.name, request_id=call.request_id)


def name_of(model: BaseChatModel) -> str:
    """The name a chat model goes by in traces, or else that of its class."""
    return model._get_ls_params().get("ls_model_name") or type(model).__name__


@contextmanager
def failures(*passing: type[Exception]) -> Iterator[None]:
    """Within it, what a chat model raises is raised as `ChatModelFailed`.

    Errors that LangChain does not classify may pass, as its own retries take it.

    Args:
        *passing: kinds that are no failures and go through as they are.
    """
    kinds: tuple[type[Exception], ...] = (GuardedLLMError, *passing)
    try:
        yield
    except kinds:
        raise
    except Exception as error:
        again = getattr(error, "is_retryable", not isinstance(error, NotImplementedError))
        kind = ChatModelFailedForNow if again else ChatModelFailed
        raise kind(f"{type(error).__name__}: {error}") from error


def _tool_arguments(options: Any) -> dict[str, Any]:
    """In the words that LangChain's chat models have in common."""
    choice = options.get("tool_choice")
    arguments: dict[str, Any] = {}
    if isinstance(choice, dict):
        arguments["tool_choice"] = choice["function"]["name"]
    elif choice is not None:
        arguments["tool_choice"] = "any" if choice == "required" else choice
    if options.get("parallel_tool_calls") is False:
        arguments["parallel_tool_calls"] = False
    return arguments
