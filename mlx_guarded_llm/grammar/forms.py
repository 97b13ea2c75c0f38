"""The grammar of a whole answer: a text of some form, tool calls, or a choice of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InvalidGrammar
from ..logs import get_logger
from ..params import SamplingParams
from .compiler import GrammarCompiler
from .schema import compiled_schema

logger = get_logger("grammar")

_NOTHING = {"type": "object", "properties": {}}  # the parameters of a tool without any
_ANYTHING = {"type": "object"}
# Without this, fixed text would consist of the tokens that the tokenizer gives, not of those that
# the model prefers; and where it spells a special token, of that token, which is not text.
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
        forced: the answer must be calls and nothing else.
    """

    start: str
    end: str
    tools: Sequence[Mapping[str, Any]]
    several: bool
    forced: bool


@dataclass(frozen=True)
class Part:
    """A part of a grammar that the caller wrote.

    Attributes:
        name: what messages call it.
        rule: its name in the rules.
        body: for llguidance: `{"json_schema": ...}` or `{"lark_grammar": ...}`.
        is_tool: it is for the arguments of a tool, which are checked afterwards.
    """

    name: str
    rule: str
    body: Mapping[str, Any]
    is_tool: bool = False

    @property
    def grammar(self) -> str:
        """The part alone as a grammar, in llguidance's JSON."""
        return _json([self.body])

    @property
    def hint(self) -> str:
        return _LENIENT if self.is_tool else ""


@dataclass(frozen=True)
class Form:
    """A grammar for a whole answer.

    Attributes:
        rules: in Lark, of the whole answer.
        parts: what the caller wrote, and may be wrong.
        binding: the answer must reach the grammar, because text of a form was asked for, or a
            call.
    """

    rules: str
    parts: tuple[Part, ...]
    binding: bool

    @property
    def grammar(self) -> str:
        """The whole in llguidance's JSON."""
        bodies = [{"name": part.rule, **part.body} for part in self.parts]
        return _json([{"lark_grammar": self.rules}, *bodies])

    def loosened(self, names: Collection[str]) -> Form:
        """The same form, with any object as the arguments of these tools."""
        return replace(
            self,
            parts=tuple(
                replace(part, body={"json_schema": compiled_schema(_ANYTHING)})
                if part.is_tool and part.name in names
                else part
                for part in self.parts
            ),
        )


def answer_form(
    compiler: GrammarCompiler, params: SamplingParams, calls: Calls | None
) -> Form | None:
    """The form of an answer, or None if anything is allowed.

    - With `calls.forced` the answer is calls.
    - With a schema, regex or grammar it is text of that form, or calls, if there are any.
    - With calls alone it is any text in which each call is valid.

    Raises:
        InvalidGrammar: a schema cannot be held; the message says what part of it.
    """
    if not params.has_form and calls is None:
        return None
    rules, parts = [_HEADER], []
    if params.has_form:
        parts.append(_text(compiler, params))
    if calls is None:
        rules.append("start: @text")
    else:
        rules.append(_start(compiler, calls, has_text=params.has_form))
        rules += _call_rules(calls)
        parts += [_arguments(calls, i) for i in range(len(calls.tools))]
    binding = params.has_form or (calls is not None and calls.forced)
    return Form("\n".join(rules), tuple(parts), binding)


def _text(compiler: GrammarCompiler, params: SamplingParams) -> Part:
    """The text that was asked for."""
    if params.schema is not None:
        return Part("the schema", "text", {"json_schema": compiled_schema(params.schema)})
    if params.regex is not None:
        rules = f"start: {compiler.regex(params.regex)}"
        return Part("the regex", "text", {"lark_grammar": rules})
    return Part("the grammar", "text", {"lark_grammar": params.grammar})


def _start(compiler: GrammarCompiler, calls: Calls, *, has_text: bool) -> str:
    """The rule of the whole answer."""
    start, end = compiler.marker(calls.start), compiler.marker(calls.end)
    block = rf'{start} "\n" call "\n" {end}'
    several = r'("\n" block)*' if calls.several else ""
    if calls.forced or has_text:
        return f"start: {'@text | ' if has_text else ''}block {several}\nblock: {block}"
    # Any text with calls in it. A call begins wherever the marker occurs.
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
    """A literal text in a regular expression of Lark."""
    return "".join(c if c.isalnum() or c in "_<> " else f"\\x{ord(c):02x}" for c in text)


def _call_rules(calls: Calls) -> list[str]:
    """The rules of the JSON of a call, one for each tool."""
    rules = [f"call: {' | '.join(f'call_{i}' for i in range(len(calls.tools)))}"]
    for i, tool in enumerate(calls.tools):
        name = json.dumps(tool["function"]["name"], ensure_ascii=False)
        head = json.dumps(f'{{"name": {name}, "arguments": ')
        rules.append(f'call_{i}: {head} @tool_{i} "}}"')
    return rules


def _arguments(calls: Calls, number: int) -> Part:
    """The arguments of a tool: the part of their schema that can be held.

    A tool that the model need not call must not make the others fail. So if its schema cannot be
    read, its arguments are any object. If it must be called, the request is refused.
    """
    function = calls.tools[number]["function"]
    name = f"the parameters of the tool {function['name']!r}"
    try:
        schema = _parameters(function, name)
    except InvalidGrammar as error:
        if calls.forced:
            raise InvalidGrammar(error.message, hint=_LENIENT) from None
        logger.warning("%s Any object is taken for its arguments.", error.message)
        schema = compiled_schema(_ANYTHING)
    return Part(name, f"tool_{number}", {"json_schema": schema}, is_tool=True)


def _parameters(function: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object."""
    if function.get("strict") is False:
        return compiled_schema(_ANYTHING)
    parameters = function.get("parameters") or _NOTHING
    if not isinstance(parameters, Mapping):
        raise InvalidGrammar(f"{where} are {parameters!r}; they must be a JSON Schema.")
    types = parameters.get("type") or "object"
    if "object" not in ([types] if isinstance(types, str) else types):
        raise InvalidGrammar(f"{where} are of type {types!r}, not an object.")
    if "type" in parameters or not parameters.keys() & {"$ref", "anyOf", "oneOf", "allOf"}:
        parameters = {**parameters, "type": "object"}
    return compiled_schema(parameters, where, loosely=True)


def _json(grammars: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps({"grammars": grammars})
