"""The grammar of a whole answer: a text of some form, tool calls, or a choice of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidGrammar
from ..params import SamplingParams
from .compiler import GrammarCompiler
from .schema import compiled_schema

_NOTHING = {"type": "object", "properties": {}}  # the parameters of a tool that has none
# Or the tokens of fixed text would be those of the tokenizer, whatever the model likes to
# write; and where such text spells a special token, that token, which is not text.
_HEADER = '%llguidance {"no_forcing": true}'
_LENIENT = 'With "strict": false the tool takes any JSON object.'
_ANY_TEXT = "/(?s:.*)/"


@dataclass(frozen=True)
class Calls:
    """Tool calls that are JSON between markers.

    Attributes:
        start: the marker before a call, and `end` the one after it.
        tools: the functions that may be called, in OpenAI form.
        several: more than one call may be made.
        forced: the answer is calls and nothing else.
    """

    start: str
    end: str
    tools: Sequence[Mapping[str, Any]]
    several: bool
    forced: bool


@dataclass(frozen=True)
class Part:
    """A part of a grammar that was written by the caller, as a grammar of its own."""

    name: str
    grammar: str
    hint: str = ""


@dataclass(frozen=True)
class Form:
    """A grammar for a whole answer.

    Attributes:
        grammar: in llguidance's JSON.
        parts: what of it can be wrong.
        binding: an answer that ends before it reached the grammar is no answer: text of
            a form was asked for, or a call.
    """

    grammar: str
    parts: tuple[Part, ...]
    binding: bool


def answer_form(
    compiler: GrammarCompiler, params: SamplingParams, calls: Calls | None
) -> Form | None:
    """The form of an answer, or None when anything goes.

    - With `calls.forced` the answer is calls.
    - With a schema, regex or grammar it is text of that form; with calls beside it,
      either of the two.
    - With calls alone it is any text in which each call is a right one.

    Raises:
        InvalidGrammar: a schema uses what is not supported; the message names it.
    """
    if not params.has_form and calls is None:
        return None
    rules, grammars, parts = [_HEADER], [], []
    if params.has_form:
        name, text = _text(compiler, params)
        grammars = [{"name": "text", **text}]
        parts = [Part(name, _json([text]))]
    if calls is None:
        rules.append("start: @text")
    else:
        rules.append(_start(compiler, calls, has_text=params.has_form))
        schemas = [_parameters(tool["function"]) for tool in calls.tools]
        rules += _call_rules(calls, schemas)
        parts += [_part(t, s) for t, s in zip(calls.tools, schemas, strict=True)]
    binding = params.has_form or (calls is not None and calls.forced)
    return Form(_json([{"lark_grammar": "\n".join(rules)}, *grammars]), tuple(parts), binding)


def _text(compiler: GrammarCompiler, params: SamplingParams) -> tuple[str, dict[str, Any]]:
    """What the text that was asked for is called, and its grammar."""
    if params.schema is not None:
        return "the schema", {"json_schema": compiled_schema(params.schema)}
    if params.regex is not None:
        return "the regex", {"lark_grammar": f"start: {compiler.regex(params.regex)}"}
    return "the grammar", {"lark_grammar": params.grammar}


def _start(compiler: GrammarCompiler, calls: Calls, *, has_text: bool) -> str:
    """The rule of the whole answer."""
    start, end = compiler.marker(calls.start), compiler.marker(calls.end)
    block = rf'{start} "\n" call "\n" {end}'
    several = r'("\n" block)*' if calls.several else ""
    if calls.forced or has_text:
        return f"start: {'@text | ' if has_text else ''}block {several}\nblock: {block}"
    # Any text, with calls in it: a call begins wherever the marker stands.
    repeat = "*" if calls.several else "?"
    if compiler.is_token(calls.start):
        lines = [
            f"start: block{repeat} TEXT",
            f"block: TEXT {block}",
        ]
    else:
        never = f"/(?s:.*){_literal(calls.start)}(?s:.*)/"
        lines = [
            f"start: block{repeat} REST",
            f"head[lazy]: TEXT {start}",
            rf'block: head "\n" call "\n" {end}',
            f"REST: TEXT & ~{never}",
        ]
    return "\n".join([*lines, f"TEXT: {_ANY_TEXT}"])


def _literal(text: str) -> str:
    """A text inside a regular expression of Lark."""
    return "".join(c if c.isalnum() or c in "_<> " else f"\\x{ord(c):02x}" for c in text)


def _call_rules(calls: Calls, schemas: Sequence[dict[str, Any]]) -> list[str]:
    """The rules of the JSON of a call, one for each tool."""
    rules = [f"call: {' | '.join(f'call_{i}' for i in range(len(calls.tools)))}"]
    for i, (tool, schema) in enumerate(zip(calls.tools, schemas, strict=True)):
        name = json.dumps(tool["function"]["name"], ensure_ascii=False)
        head = json.dumps(f'{{"name": {name}, "arguments": ')
        rules.append(f'call_{i}: {head} %json {json.dumps(schema)} "}}"')
    return rules


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, an object."""
    where = _where(function)
    if function.get("strict") is False:
        return compiled_schema({"type": "object"})
    parameters = function.get("parameters") or _NOTHING
    if not isinstance(parameters, Mapping):
        raise InvalidGrammar(f"{where} are {parameters!r}; they must be a JSON Schema.")
    if parameters.get("type", "object") != "object":
        raise InvalidGrammar(f"{where} are of type {parameters['type']!r}, not an object.")
    if not parameters.keys() & {"$ref", "anyOf", "oneOf", "allOf"}:
        parameters = {"type": "object", **parameters}
    try:
        return compiled_schema(parameters, where)
    except InvalidGrammar as error:
        raise InvalidGrammar(error.message, hint=_LENIENT) from None


def _part(tool: Mapping[str, Any], schema: dict[str, Any]) -> Part:
    return Part(_where(tool["function"]), _json([{"json_schema": schema}]), _LENIENT)


def _where(function: Mapping[str, Any]) -> str:
    return f"the parameters of the tool {function['name']!r}"


def _json(grammars: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps({"grammars": grammars})
