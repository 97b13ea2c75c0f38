"""Answers as objects: what `with_structured_output` is made of."""

from __future__ import annotations

import json
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import BaseCumulativeTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.json import parse_partial_json


class ObjectParser(BaseCumulativeTransformOutputParser[Any]):
    """Reads the object in an answer, and never mends one that is not whole.

    While an answer streams in, what there is of a dictionary is passed on; an instance of
    a class is made once the answer is complete.

        from langchain_core.messages import AIMessage

        from langchain_mlx_guarded.structured import ObjectParser

        print(ObjectParser().invoke(AIMessage('{"age": 7}')))  # {'age': 7}

    Attributes:
        cls: pydantic class to make of it; None gives a dictionary.
        tool: the object is the arguments of a call of this tool; None: it is the text.

    Raises:
        OutputParserException: the answer is cut off, is no JSON, calls no such tool, or
            does not fit the class.
    """

    cls: Any = None
    tool: str | None = None

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        generation = result[0]
        assert isinstance(generation, ChatGeneration), "a chat model gives messages"
        message = generation.message
        assert isinstance(message, AIMessage)
        if partial and isinstance(message, AIMessageChunk) and message.chunk_position != "last":
            return None if self.cls is not None else self._beginning(message)
        value = self._whole(message)
        if self.cls is None:
            return value
        is_v1 = not hasattr(self.cls, "model_validate")
        try:
            return self.cls.parse_obj(value) if is_v1 else self.cls.model_validate(value)
        except ValueError as error:  # pydantic's are, in both versions
            raise _unreadable(
                f"the answer does not fit {self.cls.__name__}: {error}", message
            ) from error

    def parse(self, text: str) -> Any:
        return self.parse_result([ChatGeneration(message=AIMessage(text))])

    def _beginning(self, message: AIMessageChunk) -> dict[str, Any] | None:
        if self.tool is not None:
            return next((c["args"] for c in message.tool_calls if c["name"] == self.tool), None)
        try:
            value = parse_partial_json(str(message.text))
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def _whole(self, message: AIMessage) -> Any:
        if message.response_metadata.get("finish_reason") == "length":
            raise _unreadable("the answer was cut off by its length", message)
        if self.tool is not None:
            for call in message.tool_calls:
                if call["name"] == self.tool:
                    return call["args"]
            raise _unreadable(f"the answer does not call {self.tool}", message)
        try:
            return json.loads(str(message.text))
        except ValueError as error:
            raise _unreadable(f"the answer is no JSON ({error})", message) from error


def json_schema(schema: dict[str, Any] | type, *, strict: bool | None) -> dict[str, Any]:
    """A schema in any of LangChain's forms as a JSON Schema.

    One that is a JSON Schema already stays as it is, and needs no title.
    """
    functions = {"function", "input_schema", "parameters"}
    if isinstance(schema, dict) and not functions & schema.keys():
        return schema
    return convert_to_json_schema(schema, strict=strict)


def with_raw(
    model: Runnable[Any, AIMessage], parser: ObjectParser
) -> Runnable[Any, dict[str, Any]]:
    """The message, what was parsed of it, and the error in doing so, as LangChain has it."""
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    unparsed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([unparsed], exception_key="parsing_error")


def _unreadable(why: str, message: AIMessage) -> OutputParserException:
    return OutputParserException(f"{why}.", llm_output=str(message.text))
