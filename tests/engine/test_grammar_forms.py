"""What a grammar lets through: schemas, expressions, tool calls, and texts with calls in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from enum import Enum
from functools import cache
from typing import Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from mlx_guarded_llm.errors import GrammarUnavailable, InvalidGrammar
from mlx_guarded_llm.grammar.compiler import GrammarCompiler, failure
from mlx_guarded_llm.grammar.forms import Calls, Form, answer_form
from mlx_guarded_llm.params import SamplingParams
from tests.engine._tokenizers import TOOL, caller, metaspace, plain, sentencepiece

MARKERS = ("<tool_call>", "</tool_call>")
NOW = {"type": "function", "function": {"name": "now", "description": "The time."}}
# Three thousand ways to go on after "ab" are more than llguidance keeps track of.
TOO_WIDE = "\n".join(
    [
        'start: "ab" any',
        f"any: {' | '.join(f'a{i}' for i in range(3000))}",
        *(f'a{i}: /x*/ "{i}"' for i in range(3000)),
    ]
)
ROME = '{"name": "weather", "arguments": {"city": "Rome"}}'


@cache
def compiler(tokenizer: Any = caller, *arguments: Any) -> GrammarCompiler:
    return GrammarCompiler(tokenizer(*(arguments or ("json_tools",) * (tokenizer is caller))))


def text_form(**params: Any) -> Form:
    form = answer_form(compiler(), SamplingParams(**params), None)
    assert form is not None
    return form


def call_form(
    tools: Sequence[Mapping[str, Any]] = (TOOL, NOW),
    *,
    markers: tuple[str, str] = MARKERS,
    several: bool = True,
    forced: bool = True,
    **params: Any,
) -> Form:
    calls = Calls(*markers, tools=tools, several=several, forced=forced)
    form = answer_form(compiler(), SamplingParams(**params), calls)
    assert form is not None
    return form


def reads(form: Form, text: str, by: GrammarCompiler | None = None) -> bool:
    """Whether this is a whole answer of the form."""
    by = by or compiler()
    matcher = by.matcher(form)
    return bool(matcher.consume_tokens(by._tokenizer.tokenize_str(text))) and matcher.is_accepting()


def block(body: str, markers: tuple[str, str] = MARKERS) -> str:
    return f"{markers[0]}\n{body}\n{markers[1]}"


@contextmanager
def ends(tokenizer: Any, tokens: set[int]) -> Iterator[None]:
    """Meanwhile these tokens end an answer."""
    before = set(tokenizer.eos_token_ids)
    tokenizer.eos_token_ids = tokens
    try:
        yield
    finally:
        tokenizer.eos_token_ids = before


# Texts


def test_json_is_written_as_json_dumps_writes_it() -> None:
    form = text_form(schema={"type": "object", "properties": {"a": {"items": {"type": "integer"}}}})
    assert reads(form, '{"a": [1, 2]}')
    assert not reads(form, '{"a":[1,2]}')
    assert not reads(form, ' {"a": [1, 2]}')
    assert not reads(form, '{"a": [1, 2], "b": 1}')


def test_true_is_any_json() -> None:
    form = text_form(schema=True)
    for text in ("null", "[]", '{"a": [1.5e3, "x"]}', '"é"'):
        assert reads(form, text)
    assert not reads(form, "nil")


@pytest.mark.parametrize(
    ("regex", "text", "other"),
    [
        ("(yes|no)", "yes", "maybe"),
        (r"^\d{3}-\d{4}$", "555-1234", "5551234"),
        ("a/b", "a/b", "a"),
        (r"costs \d+\$", "costs 5$", "costs 5"),
        ("[a-zé ]+\n", "café noir\n", "Café\n"),
    ],
)
def test_regex(regex: str, text: str, other: str) -> None:
    assert reads(text_form(regex=regex), text)
    assert not reads(text_form(regex=regex), other)


def test_grammar() -> None:
    form = text_form(grammar='start: item ("," item)*\nitem: /[a-z]+/ "=" /[0-9]+/')
    assert reads(form, "a=1,bc=22")
    assert not reads(form, "a=1,")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"regex": "a("}, "the regex cannot be held to.*unclosed group"),
        ({"regex": "(?=a)b"}, "the regex cannot be held to.*look-ahead"),
        ({"grammar": "start: nothing"}, "the grammar cannot be held to.*unknown name"),
        ({"grammar": "begin: /a/"}, "the grammar cannot be held to.*no start rule"),
        ({"schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "the schema.*minimum"),
        ({"schema": {"type": "nonsense"}}, "schema is of type 'nonsense'"),
        ({"schema": {"$ref": "#"}}, "the schema cannot be held to: no answer follows it"),
        ({"schema": {"enum": []}}, "the schema cannot be held to"),
        ({"schema": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}, "oneOf whose branches"),
        ({"schema": {"pattern": "(?!a)b", "type": "string"}}, "the schema.*look-around"),
    ],
)
def test_what_cannot_be_held_to_is_refused(params: Any, words: str) -> None:
    with pytest.raises(InvalidGrammar, match=words):
        compiler().matcher(text_form(**params))


def test_fixed_text_is_spelled_as_text_even_where_it_looks_like_markup() -> None:
    tokens = [token for part in ("<", "think", ">.") for token in caller("json_tools").encode(part)]
    matcher = compiler().matcher(text_form(regex=r"<think>\."))
    assert matcher.consume_tokens(tokens)
    assert matcher.is_accepting()
    special = caller("json_tools").encode("<think>")
    assert compiler().matcher(text_form(regex=r"<think>\.")).validate_tokens(special) == 0


def test_a_grammar_without_measure_is_refused() -> None:
    nested = f"start: {'(' * 200}/a/{')' * 200}"
    with pytest.raises(InvalidGrammar, match="too deeply nested"):
        compiler().matcher(text_form(grammar=nested))
    wide = {f"p{i}": {"enum": [f"v{i}_{j}" for j in range(50)]} for i in range(3000)}
    with pytest.raises(InvalidGrammar, match="too big"):
        compiler().matcher(text_form(schema={"type": "object", "properties": wide}))


def test_a_failure_half_way_is_told() -> None:
    matcher = compiler().matcher(text_form(grammar=TOO_WIDE))
    assert failure(matcher) == ""
    matcher.consume_tokens(compiler()._tokenizer.tokenize_str("ab"))
    assert "items" in failure(matcher)


@pytest.mark.parametrize("tokenizer", [plain, sentencepiece])
def test_other_vocabularies(tokenizer: Any) -> None:
    loaded = tokenizer()
    with ends(loaded, {0}):
        by = GrammarCompiler(loaded)
    form = answer_form(by, SamplingParams(regex=" ?the cat"), None)
    assert form is not None
    matcher = by.matcher(form)
    assert matcher.consume_tokens(loaded.encode("the cat", add_special_tokens=False))
    assert matcher.is_accepting()


def test_a_tokenizer_that_llguidance_cannot_read() -> None:
    with pytest.raises(GrammarUnavailable, match="cannot read"), ends(plain(), set()):
        GrammarCompiler(plain())
    with pytest.raises(GrammarUnavailable, match="cannot read"), ends(metaspace(), {0}):
        GrammarCompiler(metaspace())


def test_every_end_of_text_token_may_end_an_answer() -> None:
    tokenizer = caller("json_tools")
    two = {*tokenizer.eos_token_ids, tokenizer.convert_tokens_to_ids("<|endoftext|>")}
    with ends(tokenizer, two):
        by = GrammarCompiler(tokenizer, vocabulary=500)
    matcher = by.matcher(text_form(regex="a"))
    assert by.vocabulary == 500
    assert matcher.consume_tokens(tokenizer.encode("a"))
    bits = matcher.compute_bitmask()
    allowed = {i for i in range(500) if bits[i // 8] >> (i % 8) & 1}
    assert allowed == two


# Schemas as people's libraries write them


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    """A model in a model."""

    x: int = Field(3, ge=0, le=10, description="a number", examples=[1])
    y: float = Field(gt=0.5)


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


class Everything(BaseModel):
    name: str = Field(min_length=1, max_length=20, title="The name")
    colour: Colour
    letter: Literal["a", "b"] = "a"
    maybe: int | None = None
    inner: Inner
    inners: list[Inner] = Field(min_length=1, max_length=3)
    free: dict[str, Any]
    counts: dict[str, int] = {}
    when: datetime
    day: date
    ident: UUID
    pair: tuple[int, str]
    either: int | str | list[Inner]
    pet: Cat | Dog = Field(discriminator="kind")
    code: str = Field(pattern=r"^\d{3}-[a-z]+$")
    raw: bytes = b""
    anything: Any = None
    optional: Inner | None = Field(default=None, description="or none")


class Node(BaseModel):
    value: int
    children: list[Node] = []


EVERYTHING = Everything(
    name="n",
    colour=Colour.RED,
    inner=Inner(x=3, y=1.5),
    inners=[Inner(x=3, y=2)],
    free={"deep": [{"er": None}]},
    when=datetime(2024, 2, 29, 12, 30, tzinfo=UTC),
    day=date(2024, 2, 29),
    ident=UUID(int=5),
    pair=(1, "a"),
    either=[Inner(x=3, y=3)],
    pet=Dog(name="Rex"),
    code="123-abc",
)
TREE = Node(value=1, children=[Node(value=2, children=[Node(value=3)]), Node(value=4)])


@pytest.mark.parametrize("value", [EVERYTHING, TREE], ids=["everything", "tree"])
def test_pydantic_models(value: BaseModel) -> None:
    schema = type(value).model_json_schema()
    body = json.dumps(json.loads(value.model_dump_json()))
    assert reads(text_form(schema=schema), body)
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    call = block(f'{{"name": "f", "arguments": {body}}}')
    for forced in (True, False):
        assert reads(call_form([tool], forced=forced), call)


def search(query: str, k: int = 4, where: dict[str, Any] | None = None) -> str:
    """Search for things."""
    return ""


def test_tools_as_the_frameworks_convert_them() -> None:
    from langchain_core.utils.function_calling import convert_to_openai_tool
    from llama_index.core.tools import FunctionTool

    tools = [
        convert_to_openai_tool(search),
        FunctionTool.from_defaults(fn=search).metadata.to_openai_tool(),
        convert_to_openai_tool(Everything),
    ]
    form = call_form(tools)
    assert reads(form, block('{"name": "search", "arguments": {"query": "x", "where": {"a": 1}}}'))


# Calls

TAGS = pytest.mark.parametrize("markers", [MARKERS, ("<call>", "</call>")], ids=["tokens", "text"])


@TAGS
def test_forced_calls(markers: tuple[str, str]) -> None:
    one = block(ROME, markers)
    form = call_form(markers=markers)
    assert reads(form, one)
    assert reads(form, f"{one}\n{one}")
    assert reads(form, block('{"name": "now", "arguments": {}}', markers))
    for wrong in (
        "",
        f"Well, {one}",
        f"{one} there",
        block('{"name": "never", "arguments": {}}', markers),
        block('{"name": "now", "arguments": {"city": "Rome"}}', markers),
        block('{"name": "weather", "arguments": {"city": 5}}', markers),
    ):
        assert not reads(form, wrong)
    assert not reads(call_form(markers=markers, several=False), f"{one}\n{one}")


@TAGS
def test_free_text_with_right_calls_in_it(markers: tuple[str, str]) -> None:
    one = block(ROME, markers)
    form = call_form(markers=markers, forced=False)
    for right in (
        "",
        "Just <b>text</b>.\n",
        one,
        f"Well, {one}",
        f"{one}\n{one} So.",
        "<tool",
        "<",
    ):
        assert reads(form, right)
    assert not reads(form, f"Well, {block('no call', markers)}")
    assert not reads(form, f"{one} and {markers[0]}")
    single = call_form(markers=markers, forced=False, several=False)
    assert reads(single, f"Well, {one} So.")
    assert not reads(single, f"{one}\n{one}")


@TAGS
def test_calls_or_text_of_a_form(markers: tuple[str, str]) -> None:
    form = call_form(markers=markers, forced=False, schema={"type": "integer"})
    assert form.binding
    for right in ("12", block(ROME, markers)):
        assert reads(form, right)
    for wrong in ("Well", f"12{block(ROME, markers)}", f"Well, {block(ROME, markers)}"):
        assert not reads(form, wrong)
    lark = call_form(markers=markers, forced=False, grammar='start: "x" y\ny: /[0-9]/')
    assert reads(lark, "x5")
    assert reads(lark, block(ROME, markers))


def test_only_a_form_that_must_be_reached_is_binding() -> None:
    assert call_form().binding
    assert text_form(regex="a").binding
    assert not call_form(forced=False).binding


def test_names_are_written_as_json() -> None:
    tool = {"type": "function", "function": {"name": 'wéird "na\\me'}}
    call = json.dumps({"name": 'wéird "na\\me', "arguments": {}}, ensure_ascii=False)
    assert reads(call_form([tool]), block(call))


def test_a_refusal_names_the_tool() -> None:
    def tool(**parameters: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": "bad", "parameters": parameters}}

    for parameters, words in (
        ({"properties": {"a": {"type": "any"}}}, r"tool 'bad'.properties.a is of type 'any'"),
        ({"properties": {"a": {"pattern": "(", "type": "string"}}}, r"tool 'bad'.*pattern '\('"),
        ({"properties": {"a": {"enum": []}}, "required": ["a"]}, r"tool 'bad' cannot be held"),
        ({"type": "array"}, r"tool 'bad' are of type 'array'"),
    ):
        with pytest.raises(InvalidGrammar, match=words):
            compiler().matcher(call_form([TOOL, tool(**parameters)], forced=True))


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "array"},
        {"properties": {"a": {"type": "any"}}},
        {"properties": {"a": {"$ref": "http://x/y"}}},
        {"properties": {"a": {"enum": []}}, "required": ["a"]},
    ],
)
def test_a_tool_that_may_be_left_alone_and_cannot_be_held_takes_any_object(
    parameters: Any,
) -> None:
    bad = {"type": "function", "function": {"name": "bad", "parameters": parameters}}
    form = call_form([TOOL, bad], forced=False)
    assert reads(form, block('{"name": "bad", "arguments": {"a": [1]}}'))
    assert not reads(form, block('{"name": "bad", "arguments": 3}'))
    assert not reads(form, block('{"name": "worse", "arguments": {}}'))


def test_what_no_grammar_holds_of_a_tool_is_left_out_of_its_grammar() -> None:
    parameters = {
        "properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}},
        "required": ["tags"],
    }
    tool = {"type": "function", "function": {"name": "tag", "parameters": parameters}}
    for forced in (False, True):
        form = call_form([tool], forced=forced)
        assert reads(form, block('{"name": "tag", "arguments": {"tags": ["a", "a"]}}'))
        assert not reads(form, block('{"name": "tag", "arguments": {"tags": [1]}}'))


def test_a_tool_that_is_not_strict_takes_any_object() -> None:
    function = {"name": "f", "strict": False, "parameters": {"not": {}}}
    form = call_form([{"type": "function", "function": function}])
    assert reads(form, block('{"name": "f", "arguments": {"a": [1]}}'))


def test_compiled_grammars_are_kept_and_their_matchers_are_apart() -> None:
    by = GrammarCompiler(caller("json_tools"))
    one, other = by.matcher(text_form(regex="ab")), by.matcher(text_form(regex="ab"))
    assert one.consume_tokens(by._tokenizer.tokenize_str("ab"))
    assert not other.is_accepting()
    for i in range(40):
        by.matcher(text_form(regex=f"x{i}"))
    assert len(by._compiled) == 32
