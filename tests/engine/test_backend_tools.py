"""Tool calls: left to the model, forced, named, one or several, in whatever format it writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jsonschema
import pytest

from mlx_guarded_llm import Backend, GuardedLLM, Result
from mlx_guarded_llm.errors import InvalidGrammar, InvalidRequest
from mlx_guarded_llm.testing.chat_templates import chatml
from tests.conftest import MakeModel

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 10},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
HOT: dict[str, Any] = {"temperature": 8.0, "max_tokens": 600}

# Each makes mlx-lm choose another parser, and shows the tools.
NATIVE = {
    "json": chatml(tools=True),
    "xml": "{# <tool_call>\n<function= #}{{ tools }}" + chatml(),
    "mistral": "{# [TOOL_CALLS] #}{{ tools }}" + chatml(),
    "pythonic": "{# <|tool_list_start|> #}{{ tools }}" + chatml(),
    "none": chatml(),
}


@pytest.fixture(params=sorted(NATIVE))
def model(request: pytest.FixtureRequest, tiny: MakeModel) -> str:
    """Of random weights, with a format of calls."""
    tools = request.param in ("json", "xml")  # these have tokens for their markers
    return tiny(chat_template=NATIVE[request.param], tools=tools)


@pytest.fixture
def without_grammar(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if llguidance were not installed."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "llguidance", None)
        yield


def answers(backend: Backend, model: str, count: int, **options: Any) -> list[Result]:
    """Those of that many seeds, decoded together."""

    def answer(seed: int) -> Result:
        return backend.generate(model, "Hello", seed=seed, **HOT, **options)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(answer, range(count)))


def check(result: Result) -> None:
    """The answer is right calls and nothing else."""
    assert result.finish_reason == "tool_calls", result
    assert (result.text, result.invalid_tool_calls) == ("", ())
    for call in result.tool_calls:
        assert call.name in ("get_weather", "now")
        if call.name == "get_weather":
            jsonschema.validate(dict(call.arguments), WEATHER["function"]["parameters"])
        else:
            assert call.arguments == {}


class TestForced:
    """Whatever a model has learnt, a call that is asked for comes, and fits its schema."""

    def test_one_of_the_tools(self, backend: Backend, model: str) -> None:
        names = set()
        one = {"tool_choice": "required", "parallel_tool_calls": False}
        for result in answers(backend, model, 8, tools=TOOLS, **one):
            check(result)
            (call,) = result.tool_calls
            names.add(call.name)
        assert names == {"get_weather", "now"}

    def test_several_calls(self, backend: Backend, model: str) -> None:
        counts = []
        for result in answers(backend, model, 8, tools=[NOW], tool_choice="required"):
            check(result)
            counts.append(len(result.tool_calls))
            assert len({call.id for call in result.tool_calls}) == counts[-1]
        assert min(counts) >= 1
        assert max(counts) > 1

    def test_a_named_one(self, backend: Backend, model: str) -> None:
        for result in answers(backend, model, 4, tools=TOOLS, tool_choice=NAMED):
            check(result)
            assert [call.name for call in result.tool_calls] == ["get_weather"]

    def test_in_a_stream(self, backend: Backend, model: str) -> None:
        chunks = list(backend.stream(model, "Hello", tools=TOOLS, tool_choice=NAMED, **HOT))
        assert sum(len(chunk.tool_calls) for chunk in chunks) == 1
        assert "".join(chunk.text for chunk in chunks) == ""
        assert chunks[-1].finish_reason == "tool_calls"

    def test_cut_off_it_is_no_call(self, backend: Backend, model: str) -> None:
        result = backend.generate(model, "Hello", tools=TOOLS, tool_choice=NAMED, max_tokens=25)
        assert result.tool_calls == ()
        (invalid,) = result.invalid_tool_calls
        assert invalid.error == "cut off"
        assert result.finish_reason == "length"

    def test_in_a_conversation(self, backend: Backend, model: str) -> None:
        call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "What time is it?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        ]
        check(backend.generate(model, messages, tools=TOOLS, tool_choice=NAMED, seed=1, **HOT))
        assert backend.generate(model, messages, max_tokens=5).text


def test_a_function_is_a_tool(backend: Backend, tiny: MakeModel) -> None:
    def book(table: int, name: Literal["Ann", "Bob"]) -> None:
        """Book a table."""

    asked: dict[str, Any] = {"tools": [book], "tool_choice": "required", "seed": 3, **HOT}
    one = backend.generate(tiny(), "Hello", parallel_tool_calls=False, **asked)
    other = GuardedLLM(backend, tiny()).generate("Hello", parallel_tool_calls=False, **asked)
    for result in (one, other):
        (call,) = result.tool_calls
        assert call.name == "book" and call.arguments.keys() == {"table", "name"}
        assert isinstance(call.arguments["table"], int)
        assert call.arguments["name"] in ("Ann", "Bob")
    with pytest.raises(InvalidRequest, match="has no name"):
        backend.generate(tiny(), "Hello", tools=[lambda x: x])


class TestLeftToTheModel:
    def test_text_is_free(self, backend: Backend, model: str) -> None:
        """A model that calls nothing says what it says without a grammar."""
        for choice in (None, "auto"):
            result = backend.generate(
                model, "Hello", tools=TOOLS, tool_choice=choice, max_tokens=40
            )
            assert result.tool_calls == ()
            assert result.text

    @pytest.mark.parametrize("tools", [True, False], ids=["native", "ours"])
    def test_text_and_calls(self, backend: Backend, scripted: MakeModel, tools: bool) -> None:
        model = scripted(f"Let me look.\n{CALL}\n{TIME}", tools=tools)
        result = backend.generate(model, "Hello", tools=TOOLS)
        assert result.text == "Let me look.\n"
        assert [call.name for call in result.tool_calls] == ["get_weather", "now"]
        assert result.finish_reason == "tool_calls"

    @pytest.mark.parametrize("tools", [True, False], ids=["native", "ours"])
    def test_a_call_is_held_to_its_schema(
        self, backend: Backend, scripted: MakeModel, tools: bool
    ) -> None:
        """The script goes astray inside of the call; the grammar does not let it."""
        model = scripted('<tool_call>\n{"name": "get_weather", "arguments": "no"}', tools=tools)
        result = backend.generate(model, "Hello", tools=TOOLS, seed=2, **HOT)
        for call in result.tool_calls:
            jsonschema.validate(dict(call.arguments), WEATHER["function"]["parameters"])
        # What stands without the marker is not held.
        held = [call for call in result.invalid_tool_calls if not call.text.startswith("{")]
        assert all(invalid.error == "cut off" for invalid in held)
        assert result.tool_calls or held

    @pytest.mark.parametrize("tools", [True, False], ids=["native", "ours"])
    def test_one_call_at_most(self, backend: Backend, scripted: MakeModel, tools: bool) -> None:
        model = scripted(f"{CALL}\n{TIME}", tools=tools)
        result = backend.generate(model, "Hello", tools=TOOLS, parallel_tool_calls=False)
        assert [call.name for call in result.tool_calls] == ["get_weather"]
        assert result.finish_reason == "tool_calls"

    def test_one_call_at_most_in_a_format_that_is_no_json(
        self, backend: Backend, scripted: MakeModel
    ) -> None:
        call = '[TOOL_CALLS][{"name": "now", "arguments": {}}, {"name": "now", "arguments": {}}]'
        model = scripted(call, chat_template=NATIVE["mistral"], piece_bytes=20)
        both = backend.generate(model, "Hello", tools=TOOLS)
        assert len(both.tool_calls) == 2
        one = backend.generate(model, "Hello", tools=TOOLS, parallel_tool_calls=False)
        assert len(one.tool_calls) == 1

    @pytest.mark.usefixtures("without_grammar")
    def test_without_llguidance(self, backend: Backend, scripted: MakeModel) -> None:
        model = scripted(f"Let me look.{CALL}", tools=True)
        result = backend.generate(model, "Hello", tools=TOOLS)
        assert result.text == "Let me look."
        assert [call.name for call in result.tool_calls] == ["get_weather"]

    @pytest.mark.parametrize("answer", [CALL, "17"])
    def test_or_a_text_of_a_schema(
        self, backend: Backend, scripted: MakeModel, answer: str
    ) -> None:
        model = scripted(answer, tools=True)
        result = backend.generate(model, "Hello", tools=TOOLS, schema={"type": "integer"})
        if answer == CALL:
            check(result)
        else:
            assert (result.text, result.finish_reason) == ("17", "stop")

    def test_hidden_tools_are_not_called(self, backend: Backend, scripted: MakeModel) -> None:
        model = scripted(CALL, tools=True)
        result = backend.generate(model, "Hello", tools=TOOLS, tool_choice="none")
        assert (result.text, result.tool_calls) == (CALL, ())

    def test_a_tool_that_cannot_be_held_stops_nobody_unless_it_must_be_called(
        self, backend: Backend, tiny: MakeModel
    ) -> None:
        function = {"name": "odd", "parameters": {"properties": {"a": {"type": "any"}}}}
        odd = {"type": "function", "function": function}
        assert backend.generate(tiny(), "Hello", tools=[WEATHER, odd], max_tokens=3).text
        with pytest.raises(InvalidGrammar, match=r"tool 'odd'.*type 'any'") as caught:
            backend.generate(tiny(), "Hello", tools=[odd], tool_choice="required")
        assert "strict" in caught.value.hint
        lenient = {"type": "function", "function": {**function, "strict": False}}
        assert backend.generate(tiny(), "Hello", tools=[lenient], max_tokens=3).text


# As gpt-oss renders a conversation: a call is a message, and a result needs one before it.
CHANNELS = """\
{%- if tools %}<|start|>developer<|message|>{{ tools | tojson }}<|end|>{% endif %}
{%- set last = namespace(name=none) %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- if '<|channel|>' in m.content %}{{ raise_exception('channels') }}{% endif %}
        {%- if m.tool_calls %}
            {%- set call = m.tool_calls[0].function %}{% set last.name = call.name %}
            {{- '<|start|>assistant to=functions.' ~ call.name }}
            {{- '<|channel|>commentary json<|message|>' ~ (call.arguments | tojson) ~ '<|call|>' }}
        {%- else %}
            {{- '<|start|>assistant<|channel|>final<|message|>' ~ m.content ~ '<|end|>' }}
        {%- endif %}
    {%- elif m.role == 'tool' %}
        {%- if last.name is none %}{{ raise_exception('a result without a call') }}{% endif %}
        {{- '<|start|>functions.' ~ last.name ~ ' to=assistant<|channel|>commentary<|message|>' }}
        {{- (m.content | tojson) ~ '<|end|>' }}
    {%- else %}
        {{- '<|start|>' ~ m.role ~ '<|message|>' ~ m.content ~ '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""


class TestChannels:
    """gpt-oss: thinking, calls and answers are messages in channels."""

    def test_a_call_and_the_next_turn(self, backend: Backend, scripted: MakeModel) -> None:
        script = (
            "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary"
            ' to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>'
        )
        model = scripted(script, chat_template=CHANNELS)
        result = backend.generate(model, "Hello", tools=TOOLS)
        (call,) = result.tool_calls
        assert (call.name, call.arguments) == ("get_weather", {"city": "Paris"})
        assert (result.text, result.reasoning) == ("", "I look.")
        assert result.finish_reason == "tool_calls"
        function = {"name": call.name, "arguments": dict(call.arguments)}
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "Hello"},
            {
                "role": "assistant",
                "content": result.text,
                "tool_calls": [{"id": call.id, "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        again = backend.generate(model, messages, tools=TOOLS)
        assert again.tool_calls[0].name == "get_weather"

    def test_an_answer_and_the_next_turn(self, backend: Backend, scripted: MakeModel) -> None:
        script = (
            "<|channel|>analysis<|message|>A sum.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Four."
        )
        model = scripted(script, chat_template=CHANNELS)
        result = backend.generate(model, "Two and two?")
        assert (result.text, result.reasoning) == ("Four.", "A sum.")
        messages = [
            {"role": "user", "content": "Two and two?"},
            {"role": "assistant", "content": result.text},
            {"role": "user", "content": "And three?"},
        ]
        assert backend.generate(model, messages).text == "Four."

    def test_a_forced_call_is_ours(self, backend: Backend, tiny: MakeModel) -> None:
        model = tiny(chat_template=CHANNELS)
        check(backend.generate(model, "Hello", tools=TOOLS, tool_choice=NAMED, seed=1, **HOT))


class TestAnEndMarkerInAString:
    @pytest.mark.parametrize("tools", [True, False], ids=["native", "ours"])
    def test_the_grammar_and_the_reader_agree(
        self, backend: Backend, scripted: MakeModel, tools: bool
    ) -> None:
        parameters = {"type": "object", "properties": {"body": {"type": "string"}}}
        write = {"type": "function", "function": {"name": "write", "parameters": parameters}}
        body = "It ends with </tool_call> here."
        call = f'<tool_call>\n{{"name": "write", "arguments": {{"body": "{body}"}}}}\n</tool_call>'
        model = scripted(call, chat_template=NATIVE["json" if tools else "none"])
        result = backend.generate(model, "Hello", tools=[write])
        assert [call.arguments for call in result.tool_calls] == [{"body": body}]
        assert (result.text, result.invalid_tool_calls) == ("", ())
