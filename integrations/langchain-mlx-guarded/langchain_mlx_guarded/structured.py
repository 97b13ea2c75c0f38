"""Answers as objects: what `with_structured_output` is made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, cast

from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import BaseCumulativeTransformOutputParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.json import parse_partial_json
from langchain_core.utils.pydantic import is_basemodel_subclass

from mlx_guarded_llm.errors import DegradedAnswer
from mlx_guarded_llm.fallback.feedback import objection
from mlx_guarded_llm.grammar.normalise import unwrapped
from mlx_guarded_llm.results import Result

from .tools import closed, function_of, openai_tool, schema_of


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
        try:
            return _instance(self.cls, value)
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


@dataclass(frozen=True)
class Fits:
    """The check of an answer that becomes an instance of a class: what the class says of it.

    What its validators refuse is asked for again, and the model is told why.

    Attributes:
        cls: a pydantic class.
        tool: the object is the arguments of a call of this tool; None: it is the text.
        accept: a check of the caller's own, asked when the class has no objection.
    """

    cls: Any
    tool: str | None = None
    accept: Callable[[Result], bool | str | None] | None = None

    def __call__(self, result: Result) -> bool | str | None:
        return self.objection(result) or (self.accept(result) if self.accept else None)

    def objection(self, result: Result) -> str:
        """What the class says against the object in an answer; "" when it takes it."""
        if self.tool is not None:
            calls = (c.arguments for c in result.tool_calls if c.name == self.tool)
            value = next(calls, None)
        else:
            try:
                value = json.loads(result.text)
            except ValueError:
                return ""  # the other checks say so
        try:
            _instance(self.cls, value)
        except ValueError as error:  # pydantic's are, in both versions
            return objection(error)
        return ""


def _instance(cls: Any, value: Any) -> Any:
    if hasattr(cls, "model_validate_json"):  # a strict class takes a date of JSON's, no text
        return cls.model_validate_json(json.dumps(value))
    return cls.parse_obj(value)


def refused_object(error: DegradedAnswer, accept: object) -> Result:
    """The answer of which a class has the last word: the parser raises what that says.

    Raises:
        DegradedAnswer: the error itself, where something else is wrong with the answer.
    """
    answer = error.answer
    if not (isinstance(accept, Fits) and error.reasons == ("refused",)):
        raise error
    if not accept.objection(answer):
        raise error
    return answer


def is_traceable(schema: dict[str, Any] | type) -> bool:
    """Whether LangChain can put a schema into a trace: it reads `type` as one word."""
    return not isinstance(schema, dict) or isinstance(schema.get("type", ""), str)


def json_schema(schema: dict[str, Any] | type, *, strict: bool | None) -> dict[str, Any]:
    """A schema in any of LangChain's forms, or in OpenAI's wrapping, as a JSON Schema.

    One that is a JSON Schema already stays as it is, and needs no title.
    """
    functions = {"function", "input_schema", "parameters"}
    if isinstance(schema, dict) and not functions & schema.keys():
        found = dict(unwrapped(schema) or schema)
    elif isinstance(schema, type) and is_basemodel_subclass(schema):
        found = schema_of(schema)
    else:
        found = convert_to_json_schema(schema)
    return cast("dict[str, Any]", closed(found)) if strict else found


def object_tool(schema: dict[str, Any] | type, *, strict: bool | None) -> dict[str, Any]:
    """The tool whose arguments are the object."""
    if isinstance(schema, dict) and (inner := unwrapped(schema)) is not None:
        named = schema.get("json_schema", schema)
        schema = {"title": named.get("name") or "answer", **inner}
    if isinstance(schema, dict) and not {"function", "input_schema", "parameters"} & schema.keys():
        schema = function_of(schema)
    return openai_tool(schema, strict=strict)


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
