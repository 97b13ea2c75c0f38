"""MLXGuarded: an LLM of LlamaIndex that runs on mlx-guarded-llm."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from llama_index.core.base.llms.generic_utils import messages_to_prompt, prompt_to_messages
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_serializer,
    field_validator,
    model_validator,
)
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms import LLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt
from llama_index.core.types import TokenAsyncGen, TokenGen

from mlx_guarded_llm import GuardedLLM, RetryPolicy, SamplingParams, as_backend, check_backend
from mlx_guarded_llm.errors import GuardedLLMError
from mlx_guarded_llm.fallback import AsyncGuardedStream, Candidate, GuardedStream
from mlx_guarded_llm.models import LOAD_OPTIONS
from mlx_guarded_llm.models.naming import model_name, spelled, with_options
from mlx_guarded_llm.results import Result

from .candidate import LlamaIndexCandidate
from .errors import not_as_value_error
from .messages import to_openai
from .responses import chat_response, completion
from .streams import aresponses, awith_callback, responses, with_callback
from .structured import GrammarStructuredLLM
from .tools import choice_to_openai, selections, tools_to_openai
from .watch import WatchedCall

if TYPE_CHECKING:
    from llama_index.core.chat_engine.types import AgentChatResponse
    from llama_index.core.prompts import BasePromptTemplate
    from llama_index.core.tools import BaseTool

    from mlx_guarded_llm.models import ModelCard

Prompt = dict[str, Any]  # the prompt, and whether it is raw

# What `GuardedLLM` takes for each call, and what it takes once.
_SAMPLING = (
    "temperature",
    "max_tokens",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "penalty_window",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "thinking_budget",
)
_OPTIONS = (*_SAMPLING, "thinking", "template_kwargs", "timeout", "priority", "accept")
_RULES = ("on_fallback", "on_degraded", "hold_back", "constrain", "fallbacks", "retry")


class MLXGuarded(GrammarStructuredLLM):
    """A local MLX model whose answers say which model gave them.

    No load overlaps a generation, several models share one process, and the answer of a
    fallback or a cut-off one is an error unless you ask for it to be marked.

        from llama_index.core.llms import ChatMessage
        from llama_index.llms.mlx_guarded import MLXGuarded

        llm = MLXGuarded(model="smollm2-135m", max_tokens=32)
        response = llm.chat([ChatMessage("What is the capital of France?")])
        print(response.message.content)
        print(response.raw["guard"]["served_model"], response.raw["usage"])

    Making one loads nothing. All that `mlx_guarded_llm.Backend.generate` takes may be
    given to a call as well: `llm.chat(messages, stop=["END"], seed=7, schema={...})`.
    An option that nobody knows is an error.

    Raises:
        FallbackRefused: another model gave the only full answer (`on_fallback`).
        DegradedAnswer: the best answer is empty, cut off or looping (`on_degraded`).
        AttemptsExhausted: there is no answer; the last error is its cause.
        GuardedLLMError: an error that no retry mends, as `mlx_guarded_llm` raised it.
    """

    # A misspelt setting is an error, like a misspelt option of a call.
    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, BeforeValidator(spelled)] = Field(
        description="Alias, folder or Hugging Face repository."
    )
    temperature: float | None = Field(
        default=None,
        description="0 is greedy. None, here and in top_p, top_k and min_p, is the model's own "
        "default, else greedy.",
    )
    max_tokens: int | None = Field(
        default=None,
        description="Tokens of an answer at most, thinking included. An answer that this "
        "cuts off is marked, not refused.",
    )
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = Field(default=None, description="The same seed, the same tokens.")
    stop: list[str] | None = Field(default=None, description="Strings that end an answer.")
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalty_window: int | None = None
    logit_bias: dict[int, float] | None = None
    logprobs: bool | None = Field(default=None, description="Report them in `logprobs`.")
    top_logprobs: int | None = None
    timeout: float | None = Field(
        default=None, description="Seconds for a call: queueing, loading and retries included."
    )
    thinking: bool | None = Field(default=None, description="None leaves it to the model.")
    thinking_budget: int | None = Field(
        default=None, description="Tokens of thinking at most; then the answer begins."
    )
    template_kwargs: dict[str, Any] | None = Field(
        default=None, description="More variables for the chat template."
    )
    priority: Literal["interactive", "batch"] | None = Field(
        default=None, description='"batch" lets interactive requests go first, for a time.'
    )
    max_retries: int | None = Field(
        default=None, description="Short for retry=RetryPolicy(attempts=1 + max_retries)."
    )
    retry: RetryPolicy | None = Field(default=None, description="How often, how long.")
    fallbacks: list[Any] = Field(
        default_factory=list,
        description="Who is asked when the model gives no full answer: names of local models, "
        "LLMs of LlamaIndex, or Candidates of mlx_guarded_llm.",
    )
    on_fallback: Literal["raise", "mark", "hold"] = "raise"
    on_degraded: Literal["raise", "mark"] = "raise"
    accept: Annotated[
        Callable[[Result], bool | str | None] | None, WithJsonSchema({"type": "null"})
    ] = Field(
        default=None,
        exclude=True,
        description="Called with each full answer; False refuses it.",
    )
    hold_back: float = Field(
        default=0, description="Characters of a stream to keep until it cannot be retried."
    )
    constrain: bool = Field(
        default=True, description="Hold answers to their schema from the first attempt on."
    )
    additional_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="More options for every call."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit.")
    adapter_path: str | Path | None = Field(default=None, description="LoRA adapters.")
    kv_bits: int | None = Field(default=None, description="Of the KV cache: 2, 4 or 8.")
    kv_group_size: int | None = None
    context_window: int | None = Field(
        default=None,
        description="Tokens the model may attend to; None reads it from the model's files.",
    )
    draft: str | Path | None = Field(
        default=None, description='A smaller model that drafts the answers, or "prompt".'
    )
    hosts: str | list[str] | None = Field(
        default=None, description='Machines it is spread over, a hostfile, or "local:2".'
    )
    is_function_calling_model: bool | None = Field(
        default=None,
        description="None: whether it takes messages, since a grammar holds its calls. False "
        "lets LlamaIndex choose agents that write calls as text.",
    )
    backend: Any = Field(
        default=None,
        exclude=True,
        repr=False,
        description="An mlx_guarded_llm.Backend, or a server's address; None uses the one shared "
        "by the process. Copies share it; it is not dumped, and only an address is pickled.",
    )

    @classmethod
    def class_name(cls) -> str:
        return "MLXGuarded"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex asks for at every event. It is read from files; nothing is loaded."""
        card = self._card()
        window = self.context_window or (card.context_window if card else DEFAULT_CONTEXT_WINDOW)
        limit = self.max_tokens or self.additional_kwargs.get("max_tokens")
        calls = self.is_function_calling_model
        return LLMMetadata(
            context_window=window,
            # At least half is left to prompts, or LlamaIndex finds no room for one.
            num_output=min(limit or SamplingParams.max_tokens, window // 2),
            is_chat_model=card is None or card.chat,
            is_function_calling_model=(card is None or card.tools) if calls is None else calls,
            model_name=self.model,
        )

    # ---- chat ----------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer messages.

        Args:
            messages: text, thinking (which is left out), tool calls and tools' answers.
            **kwargs: options for this call; None leaves one as it is.
        """
        return self._ask(self._chat_prompt(messages), kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, without blocking the event loop. Cancelling the task cancels it."""
        return await self._aask(self._chat_prompt(messages), kwargs)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """As `chat`, piece by piece: all so far, and in `delta` what is new.

        Leaving the loop stops the generation. The last response has `raw`. What goes
        wrong after the first piece is raised at the end.
        """
        return with_callback(
            llm_chat_callback(),
            lambda given: self._stream(self._chat_prompt(messages), given),
            responses,
        )(self, messages, **kwargs)

    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """As `stream_chat`, for `async for`."""
        return await awith_callback(
            llm_chat_callback(),
            lambda given: self._astream(self._chat_prompt(messages), given),
            aresponses,
        )(self, messages, **kwargs)

    # ---- completion ------------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt.

        Args:
            prompt: one user message.
            formatted: it is plain text to go on with: no chat template is put around it.
            **kwargs: options for this call.
        """
        return completion(self._ask(self._completion_prompt(prompt, formatted), kwargs))

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """As `complete`, without blocking the event loop."""
        return completion(await self._aask(self._completion_prompt(prompt, formatted), kwargs))

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """As `complete`, piece by piece; see `stream_chat`."""
        return with_callback(
            llm_completion_callback(),
            lambda given: self._stream(self._completion_prompt(prompt, formatted), given),
            lambda stream: (completion(response) for response in responses(stream)),
        )(self, prompt, **kwargs)

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """As `stream_complete`, for `async for`."""
        return await awith_callback(
            llm_completion_callback(),
            lambda given: self._astream(self._completion_prompt(prompt, formatted), given),
            lambda stream: (completion(response) async for response in aresponses(stream)),
        )(self, prompt, **kwargs)

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """The text of an answer; see `LLM.predict`.

        Raises:
            RequestRefused: the request was wrong, as its cause tells.
        """
        with not_as_value_error():
            return super().predict(prompt, **prompt_args)

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """As `predict`, without blocking the event loop."""
        with not_as_value_error():
            return await super().apredict(prompt, **prompt_args)

    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        """As `predict`, piece by piece; see `LLM.stream`."""
        with not_as_value_error():
            yield from super().stream(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """As `stream`, for `async for`."""
        with not_as_value_error():
            tokens = await super().astream(prompt, **prompt_args)

        async def passed_on() -> TokenAsyncGen:
            with not_as_value_error():
                async for token in tokens:
                    yield token

        return passed_on()

    # ---- tools -----------------------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of `chat` that let the model call tools.

        Args:
            tool_choice: "auto", "none", "required", "any" or a tool's name; it counts
                for more than `tool_required`.
        """
        messages = list(chat_history or ())
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        if user_msg is not None:
            messages.append(user_msg)
        return {
            "messages": messages,
            "tools": tools_to_openai(tools),
            "tool_choice": choice_to_openai(tool_choice, required=tool_required),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls in an answer.

        Raises:
            NoToolCall: there are none, and that was to be an error.
        """
        return selections(response, error_on_no_tool_call=error_on_no_tool_call)

    def predict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """Let the model call tools, and call them; see `FunctionCallingLLM`."""
        with not_as_value_error():
            return FunctionCallingLLM.predict_and_call(self._calling(), *args, **kwargs)

    async def apredict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """As `predict_and_call`, without blocking the event loop."""
        with not_as_value_error():
            return await FunctionCallingLLM.apredict_and_call(self._calling(), *args, **kwargs)

    def _calling(self) -> Self:
        # For others LlamaIndex runs an agent and makes an answer of the text of any error.
        return self.model_copy(update={"is_function_calling_model": True})

    # ---- asking ----------------------------------------------------------------------

    def _chat_prompt(self, messages: Sequence[ChatMessage]) -> Prompt:
        assert self.messages_to_prompt is not None, "LLM's validator sets it"
        if self.messages_to_prompt is not messages_to_prompt:
            return {"prompt": self.messages_to_prompt(messages), "raw": True}
        return {"prompt": to_openai(messages)}

    def _completion_prompt(self, prompt: str, formatted: bool) -> Prompt:
        if formatted:
            return {"prompt": prompt, "raw": True}
        assert self.completion_to_prompt is not None, "LLM's validator sets it"
        if self.completion_to_prompt is not default_completion_to_prompt:
            return {"prompt": self.completion_to_prompt(prompt), "raw": True}
        return {"prompt": to_openai(prompt_to_messages(prompt))}

    def _ask(self, prompt: Prompt, kwargs: dict[str, Any]) -> ChatResponse:
        llm, options = self._prepared(kwargs)
        call = WatchedCall()
        with call.noting_errors():
            result = llm.generate(**prompt, **options)
        call.answered(result.guard)
        return chat_response(result)

    async def _aask(self, prompt: Prompt, kwargs: dict[str, Any]) -> ChatResponse:
        llm, options = self._prepared(kwargs)
        call = WatchedCall()
        with call.noting_errors():
            result = await llm.agenerate(**prompt, **options)
        call.answered(result.guard)
        return chat_response(result)

    def _stream(self, prompt: Prompt, kwargs: dict[str, Any]) -> GuardedStream:
        llm, options = self._prepared(kwargs)
        return llm.stream(**prompt, **options)

    def _astream(self, prompt: Prompt, kwargs: dict[str, Any]) -> AsyncGuardedStream:
        llm, options = self._prepared(kwargs)
        return llm.astream(**prompt, **options)

    def _prepared(self, kwargs: dict[str, Any]) -> tuple[GuardedLLM, dict[str, Any]]:
        """Who answers a call, and the options it is asked with."""
        fields = {name: getattr(self, name) for name in (*_OPTIONS, *_RULES)}
        given = {**self.additional_kwargs, **kwargs}
        options = fields | {name: value for name, value in given.items() if value is not None}
        if options["retry"] is None and self.max_retries is not None:
            options["retry"] = RetryPolicy(attempts=1 + self.max_retries)
        rules = {name: options.pop(name) for name in _RULES}
        rules["fallbacks"] = [_candidate(model) for model in rules["fallbacks"]]
        if options.get("tools") is not None:
            options["tools"] = tools_to_openai(options["tools"])
            options["tool_choice"] = choice_to_openai(options.get("tool_choice"))
        return GuardedLLM(self._runner(), self._named(options), **rules), options

    def _named(self, options: dict[str, Any]) -> str:
        """The full name of the model, with the load options of a call, which it takes out."""
        loading = {name: getattr(self, name) for name in LOAD_OPTIONS}
        loading |= {name: options.pop(name) for name in LOAD_OPTIONS if name in options}
        return with_options(model_name(self.model), loading)

    def _runner(self) -> Any:
        return as_backend(self.backend)

    def _card(self) -> ModelCard | None:
        """What the model's files tell; None while they are not here."""
        try:
            card: ModelCard | None = self._runner().card(self._named({}))
        except GuardedLLMError:  # a call tells what is wrong, and may fall back
            return None
        return card

    # ---- values ----------------------------------------------------------------------

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @field_validator("fallbacks")
    @classmethod
    def _check_fallbacks(cls, given: list[Any]) -> list[Any]:
        fallbacks = [spelled(model) for model in given]
        for model in fallbacks:
            if not isinstance(model, (str, LLM, Candidate)):
                raise ValueError(
                    f"a fallback is a {type(model).__name__}; it must be a model's name, an LLM "
                    "or a Candidate. LLMs are not restored from a dump: pass them again."
                )
        return fallbacks

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.retry is not None and self.max_retries is not None:
            raise ValueError("give retry or max_retries, not both.")
        if self.backend is not None:
            check_backend(self.backend, "agenerate")
        return self

    @field_serializer("fallbacks")
    def _dump_fallbacks(self, fallbacks: list[Any]) -> list[Any]:
        # By name only: an LLM of another provider may hold a key.
        plain = [_candidate(model) for model in fallbacks]
        return [m if isinstance(m, str) else {"model_name": m.name} for m in plain]

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return super().__deepcopy__({**(memo or {}), id(self.backend): self.backend})

    def __getstate__(self) -> dict[Any, Any]:
        pickle.dumps((self.accept, self.fallbacks))  # what cannot be pickled is not dropped
        kept = self.backend if isinstance(self.backend, str) else None
        bare = self.model_copy(update={"backend": kept})
        state: dict[Any, Any] = super(MLXGuarded, bare).__getstate__()
        return state


def _candidate(model: str | Path | LLM | Candidate) -> str | Path | Candidate:
    return LlamaIndexCandidate(model) if isinstance(model, LLM) else model
