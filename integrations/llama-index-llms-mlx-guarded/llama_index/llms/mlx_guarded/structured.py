"""Objects out of answers that a JSON Schema holds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.bridge.pydantic import BaseModel, ValidationError
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.program.utils import create_flexible_model
from llama_index.core.types import PydanticProgramMode
from llama_index_instrumentation import get_dispatcher
from pydantic import AliasChoices
from pydantic_core import from_json

from mlx_guarded_llm.fallback.feedback import objection
from mlx_guarded_llm.results import Result

from .errors import not_as_value_error

if TYPE_CHECKING:
    from llama_index.core.prompts import PromptTemplate

_dispatcher = get_dispatcher(__name__)


class GrammarStructuredLLM(FunctionCallingLLM):
    """An LLM whose structured predictions are answers that a schema holds, not tool calls."""

    accept: Any

    def structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """An object of a pydantic class, by an answer that its JSON Schema holds.

        Args:
            output_cls: what its validators refuse is asked for again.
            prompt: a template.
            llm_kwargs: options for the call.
            **prompt_args: what the template takes.

        Raises:
            DegradedAnswer: no attempt gave such an object. An object cannot carry a
                mark, so `on_degraded="mark"` does not change that.
            RequestRefused: the request was wrong, as its cause tells.
        """
        with not_as_value_error():
            if self._by_program:
                return super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            _dispatcher.event(_start(output_cls, prompt, prompt_args))
            response = self.chat(
                self._messages(prompt, prompt_args),
                **_holding(output_cls, llm_kwargs, self.accept),
            )
        found = _whole(output_cls, response)
        _dispatcher.event(LLMStructuredPredictEndEvent(output=found))
        return found

    async def astructured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        """As `structured_predict`, without blocking the event loop."""
        with not_as_value_error():
            if self._by_program:
                return await super().astructured_predict(
                    output_cls, prompt, llm_kwargs, **prompt_args
                )
            _dispatcher.event(_start(output_cls, prompt, prompt_args))
            response = await self.achat(
                self._messages(prompt, prompt_args),
                **_holding(output_cls, llm_kwargs, self.accept),
            )
        found = _whole(output_cls, response)
        _dispatcher.event(LLMStructuredPredictEndEvent(output=found))
        return found

    def _structured_stream_call(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """What `stream_structured_predict` yields: objects so far, at last the whole one."""
        with not_as_value_error():
            if self._by_program:
                yield from super()._structured_stream_call(
                    output_cls, prompt, llm_kwargs, **prompt_args
                )
                return
            partial = _Partial(output_cls)
            messages = self._messages(prompt, prompt_args)
            options = _holding(output_cls, llm_kwargs, self.accept)
            for response in self.stream_chat(messages, **options):
                yield from partial.read(response)
        yield _whole(output_cls, response)

    async def _structured_astream_call(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        """As `_structured_stream_call`, for `async for`."""
        if self._by_program:
            with not_as_value_error():
                return await super()._structured_astream_call(
                    output_cls, prompt, llm_kwargs, **prompt_args
                )

        async def objects() -> AsyncGenerator[Any, None]:
            with not_as_value_error():
                partial = _Partial(output_cls)
                messages = self._messages(prompt, prompt_args)
                options = _holding(output_cls, llm_kwargs, self.accept)
                async for response in await self.astream_chat(messages, **options):
                    for found in partial.read(response):
                        yield found
            yield _whole(output_cls, response)

        return objects()

    @property
    def _by_program(self) -> bool:
        """Another way to make objects was chosen."""
        return self.pydantic_program_mode != PydanticProgramMode.DEFAULT

    def _messages(self, prompt: PromptTemplate, prompt_args: dict[str, Any]) -> list[ChatMessage]:
        return self._extend_messages(prompt.format_messages(llm=self, **prompt_args))


def _holding(output_cls: type[BaseModel], options: dict[str, Any] | None, accept: Any) -> Any:
    """The options of a call whose answer becomes an object of a class.

    What the class checks beyond its schema becomes part of `accept`, so a mismatch is
    asked for again, with what the class says of it. An object cannot be marked, so a
    degraded answer is always raised.

    Args:
        output_cls: a pydantic model.
        options: of the caller.
        accept: the check of the LLM itself; one in the options comes before it.
    """
    options = dict(options or {})
    accept = options.pop("accept", None) or accept

    def fits(result: Result) -> bool | str | None:
        try:
            output_cls.model_validate_json(result.text)
        except ValidationError as error:
            return objection(error)
        verdict: bool | str | None = accept(result) if accept is not None else None
        return verdict

    return {
        **options,
        "schema": output_cls.model_json_schema(),
        "accept": fits,
        "on_degraded": "raise",
    }


def _whole(output_cls: type[BaseModel], response: ChatResponse) -> BaseModel:
    """The object of a whole answer."""
    return output_cls.model_validate_json(response.message.content or "")


def _by_alias(cls: type[BaseModel]) -> dict[str, str]:
    """The field that a text means by each name of its own: its alias, as the schema has it."""
    names = {}
    for name, field in cls.model_fields.items():
        alias = field.validation_alias or field.alias
        if isinstance(alias, AliasChoices):
            alias = alias.choices[0]
        names[alias if isinstance(alias, str) else name] = name
    return names


class _Partial:
    """Objects of an answer that is still growing; every field may still be missing."""

    def __init__(self, output_cls: type[BaseModel]) -> None:
        self._flexible = create_flexible_model(output_cls)
        self._names = _by_alias(output_cls)
        self._last: Any = None

    def read(self, response: ChatResponse) -> Iterator[Any]:
        """The object so far, if there is more of it than before."""
        try:
            value = from_json(response.message.content or "", allow_partial="trailing-strings")
        except ValueError:
            return  # not the beginning of anything yet
        if isinstance(value, dict) and value != self._last:
            self._last = value
            named = {self._names.get(key, key): item for key, item in value.items()}
            yield self._flexible.model_validate(named)


def _start(
    output_cls: type[BaseModel], prompt: PromptTemplate, prompt_args: dict[str, Any]
) -> LLMStructuredPredictStartEvent:
    return LLMStructuredPredictStartEvent(
        output_cls=output_cls, template=prompt, template_args=prompt_args
    )
