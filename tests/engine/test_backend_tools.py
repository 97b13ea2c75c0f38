"""Tool calls: left to the model, forced, named, one or several, in whatever format it writes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from mlx_guarded_llm import Backend, Result
from mlx_guarded_llm.errors import InvalidGrammar
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
    """Those of so many seeds, decoded together."""

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
        assert all(invalid.error == "cut off" for invalid in result.invalid_tool_calls)
        assert result.tool_calls or result.invalid_tool_calls

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

    def test_an_unsupported_keyword_is_refused_by_tool_and_name(
        self, backend: Backend, tiny: MakeModel
    ) -> None:
        function = {"name": "odd", "parameters": {"properties": {"a": {"not": {}}}}}
        odd = {"type": "function", "function": function}
        with pytest.raises(InvalidGrammar, match=r"tool 'odd'.*keyword 'not'") as caught:
            backend.generate(tiny(), "Hello", tools=[WEATHER, odd])
        assert "strict" in caught.value.hint
        lenient = {"type": "function", "function": {**function, "strict": False}}
        assert backend.generate(tiny(), "Hello", tools=[lenient], max_tokens=3).text
