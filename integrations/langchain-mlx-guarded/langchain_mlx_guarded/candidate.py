"""Any chat model of LangChain as one that `GuardedLLM` can ask."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig

from mlx_guarded_llm.errors import GuardedLLMError
from mlx_guarded_llm.fallback import Call
from mlx_guarded_llm.fallback.deadline import awithin, within
from mlx_guarded_llm.fallback.external import (
    CUT_OFF,
    ExternalModel,
    instructed,
    is_object,
    may_pass,
    plain_name,
)
from mlx_guarded_llm.fallback.finish_reasons import finish_reason
from mlx_guarded_llm.results import Result
from mlx_guarded_llm.tool_check import callable_tools

from .answers import answer_of, cut_off_by

# The answer is traced as that of the model that asked. A second run in the same trace
# would stream its tokens and count its usage twice.
_SILENT = RunnableConfig(callbacks=[])


class ChatModelFailed(GuardedLLMError):
    """A chat model of another package raised; `__cause__` is its error."""

    fallback = True


class ChatModelFailedForNow(ChatModelFailed):
    """The same, and it may answer when asked again."""

    retryable = True


class LangChainCandidate(ExternalModel):
    """A chat model of LangChain, such as one in the cloud, as a fallback.

    Tools, `tool_choice`, `stop` and a schema reach it. How it samples stays as its owner
    set it up; `max_tokens`, `temperature` and `seed` of the call reach it where it has
    such a field and its owner left it open.

        from langchain_core.language_models import FakeListChatModel

        from langchain_mlx_guarded import LangChainCandidate
        from mlx_guarded_llm.fallback import Call

        candidate = LangChainCandidate(FakeListChatModel(responses=["Paris."]))
        print(candidate.generate(Call(prompt="The capital of France?")).text)  # Paris.

    Args:
        model: the chat model; its own retries, if any, are made within one attempt.
    """

    errors = (GuardedLLMError,)

    def __init__(self, model: BaseChatModel) -> None:
        super().__init__(name_of(model), model)

    def generate(self, call: Call) -> Result:
        asked = self.understood(call)
        with failures():
            try:
                answer = self._answer(asked)
            except Exception as error:
                answer = cut_off_by(error)
                if answer is None and not self.learns(asked, error):
                    raise
                answer = answer or self._answer(self.understood(call))
        return self._result(answer, call)

    async def agenerate(self, call: Call) -> Result:
        asked = self.understood(call)
        with failures():
            try:
                answer = await self._aanswer(asked)
            except Exception as error:
                answer = cut_off_by(error)
                if answer is None and not self.learns(asked, error):
                    raise
                answer = answer or await self._aanswer(self.understood(call))
        return self._result(answer, call)

    def _answer(self, call: Call) -> Any:
        model, messages = self._prepare(call)
        return within(call.timeout, self.name, lambda: model.invoke(messages, _SILENT))

    async def _aanswer(self, call: Call) -> Any:
        model, messages = self._prepare(call)
        return await awithin(call.timeout, self.name, model.ainvoke(messages, _SILENT))

    def _prepare(self, call: Call) -> tuple[Runnable[Any, Any], list[BaseMessage]]:
        options = call.options
        self.refuse_what_it_cannot(options)
        prompt: Any = call.prompt
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        chat = self.set_up(options)
        model: Runnable[Any, Any] = chat
        tools = callable_tools(options.get("tools"), options.get("tool_choice"))
        schema = options.get("schema")
        if tools:
            model = chat.bind_tools(options["tools"], **_tool_arguments(chat, options))
        elif is_object(schema):
            try:
                form = {**schema, "title": plain_name(str(schema.get("title") or "Answer"))}
                return chat.with_structured_output(form, include_raw=True), _messages(prompt)
            except NotImplementedError:
                pass  # it may write JSON all the same; the answer is checked
        if schema is not None:
            prompt = instructed(prompt, schema, beside_tools=bool(tools))
        stop = options.get("stop")
        if stop and not getattr(chat, "stop", None):  # some refuse to have both
            model = model.bind(stop=[stop] if isinstance(stop, str) else list(stop))
        return model, _messages(prompt)

    def _result(self, answer: Any, call: Call) -> Result:
        if isinstance(answer, AIMessage):
            return self.result(call, answer_of(answer, provider_of(self.model)))
        # of with_structured_output: what was parsed is the answer, however it was obtained,
        # but of an answer that was cut off, of which half an object is completed
        said = answer_of(answer["raw"], provider_of(self.model))
        parsed = answer["parsed"]
        if parsed is not None and finish_reason(*said.sources) not in CUT_OFF:
            text = json.dumps(parsed, ensure_ascii=False)
            said = replace(said, text=text, tool_calls=(), as_text=True)
        return self.result(call, said)


def _messages(prompt: Sequence[Mapping[str, Any]]) -> list[BaseMessage]:
    return convert_to_messages([dict(message) for message in prompt])


def name_of(model: BaseChatModel) -> str:
    """The name a chat model goes by in traces, or else that of its class."""
    return model._get_ls_params().get("ls_model_name") or type(model).__name__


def provider_of(model: BaseChatModel) -> str:
    """Who a chat model is from, as traces name it."""
    return model._get_ls_params().get("ls_provider", "")


@contextmanager
def failures(*passing: type[Exception]) -> Iterator[None]:
    """Within it, what a chat model raises is raised as `ChatModelFailed`.

    Args:
        *passing: kinds that are no failures and go through as they are.
    """
    kinds: tuple[type[Exception], ...] = (GuardedLLMError, *passing)
    try:
        yield
    except kinds:
        raise
    except Exception as error:
        kind = ChatModelFailedForNow if may_pass(error) else ChatModelFailed
        raise kind(f"{type(error).__name__}: {error}") from error


def _tool_arguments(model: BaseChatModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """In the words that LangChain's chat models have in common."""
    choice = options.get("tool_choice")
    arguments: dict[str, Any] = {}
    if isinstance(choice, Mapping):
        arguments["tool_choice"] = choice["function"]["name"]
    elif choice is not None:
        arguments["tool_choice"] = "any" if choice == "required" else choice
    # Those that do not know it by name would hand it on to a service that may not either.
    known = inspect.signature(model.bind_tools).parameters
    if options.get("parallel_tool_calls") is False and "parallel_tool_calls" in known:
        arguments["parallel_tool_calls"] = False
    return arguments
