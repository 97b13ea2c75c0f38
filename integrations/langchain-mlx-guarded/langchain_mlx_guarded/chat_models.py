"""The chat model."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict, Field, SecretStr, SkipValidation, model_validator

from mlx_guarded_llm import BaseBackend, GuardedLLM, RetryPolicy, as_backend, check_backend
from mlx_guarded_llm.errors import DegradedAnswer, InvalidRequest, ServerUnavailable
from mlx_guarded_llm.fallback.candidate import as_chunk
from mlx_guarded_llm.models import LOAD_OPTIONS
from mlx_guarded_llm.models.naming import model_name, with_options
from mlx_guarded_llm.params import SamplingParams

from .answers import PROVIDER, ChunkTranslator, chat_result
from .caching import CachesFullAnswers
from .candidate import LangChainCandidate
from .errors import framework_errors
from .facts import catalog, profile_of
from .messages import to_openai
from .options import SAMPLING, ModelName, OneOrMore, call_options, tool_choice
from .sharing import SharesBackend
from .structured import (
    Fits,
    ObjectParser,
    is_traceable,
    json_schema,
    object_tool,
    refused_object,
    with_raw,
)
from .tools import Tool, openai_tool

Accept = Callable[[Any], bool | str | None]

_PROMPTING = ("thinking", "template_kwargs")


class ChatMLXGuarded(SharesBackend, CachesFullAnswers):
    """A chat model that runs on MLX, in this process, and never passes off another's answer.

        from langchain_mlx_guarded import ChatMLXGuarded

        chat = ChatMLXGuarded(model="smollm2-135m", max_tokens=32)
        answer = chat.invoke("What is the capital of France?")
        print(answer.content, answer.response_metadata["guard"]["served_model"])

    Nothing is loaded before the first call. All instances that are given no `backend`
    share one, so any number of models in any number of threads keep its rules.

    A failed or degraded answer is tried again (`max_retries`, or in detail `retry`), then
    the `fallbacks` are asked. `on_fallback` and `on_degraded` say what becomes of an
    answer that is not the one asked for: by default an error that carries it. Where an
    answer came from is in `response_metadata["guard"]`; `mlx_guarded_llm.taint(messages)`
    tells which messages rest on one that was not as asked.

    The options of a load (`revision` to `hosts`) are for this model, not for the
    fallbacks; a fallback's stand in brackets: `phi3-mini[kv_bits=8]`. They and every
    sampling option below may be given to one call as well, as may `tools`,
    `tool_choice`, `schema`, `regex`, `grammar`, `response_format`, `accept`, `request_id`
    and another `model`: `chat.invoke(messages, temperature=0.7)`, `chat.bind(seed=1)`.
    What a call says wins; an option that does not exist is an error.

    Raises:
        pydantic.ValidationError: an argument is unknown or wrong.
    """

    model_name: ModelName = Field(alias="model")
    """Alias, folder or Hugging Face repository of the model."""

    revision: str | None = None
    """Branch, tag or commit of the model's repository."""

    adapter_path: str | Path | None = None
    """Folder of LoRA adapters."""

    kv_bits: int | None = None
    """Quantise the KV cache to 2, 4 or 8 bits."""

    kv_group_size: int | None = None
    context_window: int | None = None
    """Tokens the model may attend to; None takes what its files say."""

    draft: str | Path | None = None
    """A smaller model that drafts the answers, or "prompt" to look them up in the prompt."""

    hosts: str | list[str] | None = None
    """Addresses of the machines over which the model is spread, a hostfile, or "local:2"."""

    max_tokens: int | None = None
    """Tokens to generate at most. None begins with 1024 and takes more when they are needed."""

    temperature: float | None = None
    """0 takes the likeliest token; None is the model's own default, else 0."""

    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    """The same request with it gives the same answer; None draws one, `guard` tells which."""

    stop: OneOrMore | None = Field(default=None, alias="stop_sequences")
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalty_window: int | None = None
    logit_bias: dict[int, float] | None = None
    logprobs: bool | None = None
    """Put the log probability of each token into `response_metadata["logprobs"]`."""

    top_logprobs: int | None = None
    thinking: bool | None = None
    """Whether a model that can think does; None leaves it to the model."""

    thinking_budget: int | None = None
    """Tokens of thinking at most; then the answer begins."""

    template_kwargs: dict[str, Any] | None = None
    """More variables for the chat template."""

    timeout: float | None = None
    """Seconds for one call, all its attempts, waiting and loading included."""

    priority: Literal["interactive", "batch"] | None = None
    """"batch" lets interactive requests go first, for a time; see `mlx_guarded_llm.Backend`."""

    max_retries: int = 2
    """How often a call is tried again. `retry` says more, and only one may be given."""

    retry: RetryPolicy | None = None
    fallbacks: list[ModelName | BaseChatModel] = Field(default_factory=list)
    """Who is asked next, in order: local models by name, or any chat models."""

    on_fallback: Literal["raise", "mark", "hold"] = "raise"
    """What becomes of a fallback's answer; see `mlx_guarded_llm.GuardedLLM`."""

    on_degraded: Literal["raise", "mark"] = "raise"
    """What becomes of an answer that is empty, cut off, looping or refused."""

    accept: Accept | None = Field(default=None, exclude=True)
    """Called with each full `Result`; False asks for another one."""

    constrain: bool = True
    """Hold answers to their schema from the first attempt on."""

    hold_back: float = 0
    """Characters of a stream to keep until its first is passed on; it is retried until then."""

    streaming: bool = False
    """Stream inside of `invoke`, too, so that callbacks get each token."""

    backend: SkipValidation[BaseBackend | str | None] = Field(
        default=None, exclude=True, repr=False
    )
    """Runs the models: a `Backend` or the address of a server ("http://127.0.0.1:8080"). None takes
    the one shared by the process, when it is first needed."""

    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """Taken and not used, so that code which swaps providers needs no exception."""

    model_config = ConfigDict(populate_by_name=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="after")
    def _check(self) -> Self:
        default = type(self).model_fields["max_retries"].default
        if self.retry is not None and self.max_retries != default:
            raise InvalidRequest(
                "max_retries and retry are both given.",
                hint="Use RetryPolicy(attempts=max_retries + 1) alone.",
            )
        if self.backend is not None:
            check_backend(self.backend)
        SamplingParams(**self.sampling())
        self._policy()
        return self

    # ---- answering ---------------------------------------------------------------------

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with framework_errors():
            llm, options = self._asked(stop, kwargs)
            try:
                return chat_result(llm.generate(to_openai(messages), **options))
            except DegradedAnswer as error:
                return chat_result(refused_object(error, options.get("accept")))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with framework_errors():
            llm, options = self._asked(stop, kwargs)
            try:
                return chat_result(await llm.agenerate(to_openai(messages), **options))
            except DegradedAnswer as error:
                return chat_result(refused_object(error, options.get("accept")))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        translate = ChunkTranslator()
        with framework_errors():
            llm, options = self._asked(stop, kwargs)
            try:
                with llm.stream(to_openai(messages), **options) as chunks:
                    for chunk in chunks:
                        yield translate(chunk)
            except DegradedAnswer as error:
                yield translate(as_chunk(refused_object(error, options.get("accept"))))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        translate = ChunkTranslator()
        with framework_errors():
            llm, options = self._asked(stop, kwargs)
            try:
                async with llm.astream(to_openai(messages), **options) as chunks:
                    async for chunk in chunks:
                        yield translate(chunk)
            except DegradedAnswer as error:
                yield translate(as_chunk(refused_object(error, options.get("accept"))))

    def _asked(
        self, stop: list[str] | None, given: dict[str, Any]
    ) -> tuple[GuardedLLM, dict[str, Any]]:
        """Who answers one call, and with what options."""
        own = {**self.sampling(), **self._given((*_PROMPTING, "timeout", "priority"))}
        options = call_options(own, {**given, "stop": stop})
        fits = options.get("accept")
        is_object = isinstance(fits, Fits)
        if isinstance(fits, Fits) and fits.accept is None:
            options["accept"] = replace(fits, accept=self.accept)
        llm = GuardedLLM(
            self.backend,
            self._named(options),
            fallbacks=[
                LangChainCandidate(f) if isinstance(f, BaseChatModel) else f for f in self.fallbacks
            ],
            retry=self._policy(),
            on_fallback=self.on_fallback,
            on_degraded=self.on_degraded,
            accept=self.accept,
            # Of an object nothing is passed on before it is whole.
            hold_back=math.inf if is_object else self.hold_back,
            constrain=self.constrain,
        )
        return llm, options

    def _named(self, options: dict[str, Any]) -> str:
        """The full name of the model that a call is for, whose options it takes out."""
        loading = {name: options.pop(name) for name in LOAD_OPTIONS if name in options}
        if (model := options.pop("model", None)) is None:
            model, loading = self.model_name, {**self._given(LOAD_OPTIONS), **loading}
        return with_options(model_name(model), loading)

    def _policy(self) -> RetryPolicy:
        return self.retry or RetryPolicy(attempts=self.max_retries + 1)

    def sampling(self) -> dict[str, Any]:
        """The sampling options that were given to the constructor."""
        return self._given(_sampling_fields(type(self)))

    def _given(self, names: Iterable[str]) -> dict[str, Any]:
        return {n: value for n in names if (value := getattr(self, n)) is not None}

    # ---- tools and objects -------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[Tool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        parallel_tool_calls: bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools to the model.

            from langchain_mlx_guarded import ChatMLXGuarded

            def add(a: int, b: int) -> int:
                "Add two numbers."
                return a + b

            chat = ChatMLXGuarded(model="smollm2-135m").bind_tools([add], tool_choice="any")
            print(chat.invoke("What is 3 + 4?").tool_calls)

        Args:
            tools: functions, classes, tools of LangChain or schemas.
            tool_choice: "auto" (or None) leaves it to the model; "any", "required" or True
                makes it call one, a tool's name (or OpenAI's mapping) that one; "none"
                hides the tools.
            parallel_tool_calls: whether one answer may hold several calls. By default yes
                when the model decides whether to call, and one when it must.
            strict: True closes objects that name their properties, False takes any
                arguments. Calls are held to their schema without it as well.
            **kwargs: more options for each call.

        Raises:
            InvalidRequest: `tool_choice` names no tool.
        """
        with framework_errors():
            offered = [openai_tool(tool, strict=strict) for tool in tools]
            if offered:
                choice = _tool_choice(tool_choice, offered)
                kwargs = {"tools": offered, "tool_choice": choice, **kwargs}
            else:
                kwargs = {"tool_choice": tool_choice, **kwargs}
        if parallel_tool_calls is not None:
            kwargs["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(**{name: value for name, value in kwargs.items() if value is not None})

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Get objects instead of messages.

            from pydantic import BaseModel

            from langchain_mlx_guarded import ChatMLXGuarded

            class City(BaseModel):
                name: str
                country: str

            chat = ChatMLXGuarded(model="smollm2-135m").with_structured_output(City)
            print(chat.invoke("Name a city, as JSON with its name and country."))

        The model does not see the schema: its answer is held to it token by token. So
        tell it in the prompt what the fields mean.

        Args:
            schema: a pydantic class, of which instances are returned; or a `TypedDict` or
                a JSON Schema, which give dictionaries.
            method: "json_schema" holds the answer to the schema, "function_calling" makes
                the model call a tool that has it, "json_mode" holds it to any JSON object
                and leaves the fields to the prompt.
            include_raw: return {"raw": message, "parsed": ..., "parsing_error": ...}.
            strict: True closes objects that name their properties.
            **kwargs: more options for each call.

        Raises:
            InvalidRequest: an unknown method, or no schema where one is needed.
            DegradedAnswer: when called: the answer is degraded, whatever `on_degraded` says,
                but with include_raw=True, where the message carries the mark.
            OutputParserException: when called: the answer is no such object. An answer
                that was cut off is never completed.
        """
        cls = schema if isinstance(schema, type) and is_basemodel_subclass(schema) else None
        with framework_errors():
            if method not in ("json_schema", "function_calling", "json_mode"):
                raise InvalidRequest(
                    f"method is {method!r}; it must be 'json_schema', 'function_calling' "
                    "or 'json_mode'."
                )
            if schema is None and method != "json_mode":
                raise InvalidRequest(f"method={method!r} needs a schema.")
        if schema is not None and is_traceable(schema):
            traced = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
            kwargs["ls_structured_output_format"] = traced
        model: Runnable[LanguageModelInput, AIMessage]
        tool = (
            object_tool(schema, strict=strict)
            if schema is not None and method == "function_calling"
            else None
        )
        name = tool["function"]["name"] if tool else None
        parser = ObjectParser(cls=cls, tool=name)
        if cls is not None:
            kwargs["accept"] = Fits(cls, name, kwargs.get("accept"))
        # An object cannot carry a mark.
        chat = self if include_raw else self.model_copy(update={"on_degraded": "raise"})
        if tool is not None:
            model = chat.bind_tools(
                [tool], tool_choice=name, parallel_tool_calls=False, strict=strict, **kwargs
            )
        elif method == "json_mode" or schema is None:
            model = chat.bind(schema={"type": "object"}, **kwargs)
        else:
            model = chat.bind(schema=json_schema(schema, strict=strict), **kwargs)
        return with_raw(model, parser) if include_raw else model | parser

    # ---- what LangChain wants to know --------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "mlx-guarded-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Everything that an answer depends on."""
        return {
            "model_name": self._named({}),
            **self.sampling(),
            **self._given(_PROMPTING),
            "fallbacks": [f if isinstance(f, str) else f.asdict() for f in self.fallbacks],
            "on_fallback": self.on_fallback,
            "on_degraded": self.on_degraded,
            "retry": asdict(self._policy()),
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        said = {**self.sampling(), **{k: v for k, v in kwargs.items() if v is not None}}
        params = LangSmithParams(
            ls_provider=PROVIDER,
            ls_model_name=said.get("model", self.model_name),
            ls_model_type="chat",
        )
        if "temperature" in said:
            params["ls_temperature"] = said["temperature"]
        if "max_tokens" in said:
            params["ls_max_tokens"] = said["max_tokens"]
        if stop := (self.stop if stop is None else stop):
            params["ls_stop"] = stop
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        # Not by the shared backend: making a chat model must not start it.
        try:
            shelf = catalog() if self.backend is None else as_backend(self.backend)
            card = shelf.card(self._named({}))
        except ServerUnavailable:
            card = None  # a call tells what is wrong
        return profile_of(card, self.model_name)

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of a text, by the model's own tokenizer. No weights are loaded."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        with framework_errors():
            return self._runner().tokens(self._named({}), text, raw=True, special_tokens=False)

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Tool] | None = None
    ) -> int:
        """Tokens of the prompt that these messages make, its template and tools included.

        Any slice of a history can be counted, whatever order the template asks for.
        """
        if not messages:
            return 0
        offered = [openai_tool(tool) for tool in tools or ()]
        with framework_errors():
            dialogue = to_openai(messages)
            prompting = self._given(_PROMPTING)
            model = self._named({})
            return len(self._runner().tokens(model, dialogue, tools=offered, **prompting))

    def _runner(self) -> BaseBackend:
        return as_backend(self.backend)

    # ---- serialising and caching ---------------------------------------------------------

    @classmethod
    def is_lc_serializable(cls) -> bool:
        return True

    @property
    def lc_attributes(self) -> dict[str, Any]:
        return {} if self.retry is None else {"retry": asdict(self.retry)}

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """What a cached answer depends on: the weights, too, not only their name."""
        kwargs.pop("accept", None)  # the check sees what comes out of the cache
        card = self._runner().card(self._named(dict(kwargs)))
        depends = {
            **self._identifying_params,
            "revision": card and card.revision,
            "fingerprint": card and card.fingerprint,
            "sampling": card and dict(card.sampling),
        }
        weights = json.dumps(depends, sort_keys=True, default=str)
        return super()._get_llm_string(stop, **kwargs) + "---" + weights


@cache
def _sampling_fields(cls: type[ChatMLXGuarded]) -> tuple[str, ...]:
    return tuple(name for name in cls.model_fields if name in SAMPLING)


_tool_choice = tool_choice  # `bind_tools` has an argument of that name
