"""Calls without the markers of the model's format, and markers that are only spoken of."""

from __future__ import annotations

from typing import Any

import mlx_lm  # noqa: F401 - the first import of MLX, on the main thread
import pytest

from mlx_guarded_llm.engine.output.calls.offered import Offered
from mlx_guarded_llm.engine.output.markup import markup
from mlx_guarded_llm.engine.output.structure import ANSWER, Structure
from mlx_guarded_llm.engine.prompt.prompt import Prompt, Segment
from mlx_guarded_llm.engine.prompt.tool_format import OURS, native_format
from tests.engine._call_formats import FORMATS, Call, Read, tokenizer, tool

WEATHER, NOW = tool("get_weather", {"city": {"type": "string"}}), tool("get_time", {})
TOOLS = (WEATHER, NOW)
ROME: Call = ("get_weather", {"city": "Rome"})
TIME: Call = ("get_time", {})
JSON = '{"name": "get_weather", "arguments": {"city": "Rome"}}'
SHAPES = pytest.mark.parametrize("form", ["hermes", "ours", "mistral", "pythonic", "glm"])


def read(form: str, text: str, **options: Any) -> Read:
    """As one piece, and the same character by character."""
    whole = Read(FORMATS[form], [text], TOOLS, **options)
    assert Read(FORMATS[form], list(text), TOOLS, **options).all == whole.all
    return whole


@SHAPES
@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (JSON, [ROME]),
        (JSON.replace("arguments", "parameters"), [ROME]),
        (f"[{JSON}]", [ROME]),
        (f"{JSON}; {JSON}", [ROME, ROME]),
        (f"```json\n{JSON}\n```", [ROME]),
        (f"```\n[{JSON}]\n```\n", [ROME]),
        ('[get_weather(city="Rome"), get_time()]', [ROME, TIME]),
        ('{"type": "function", "function": {"name": "get_time", "arguments": {}}}', [TIME]),
    ],
)
def test_an_answer_that_is_a_bare_call(form: str, text: str, calls: Any) -> None:
    assert read(form, text).all == ("", "", calls, [])
    assert Read(FORMATS[form], [text], ()).text == text


@SHAPES
@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Bob", "arguments": {}}',
        '{"temperature": 3, "name": "get_time"}',
        "[1, 2]",
        "[get_time] is a tool.",
        "[a](http://b)",
        "```python\nget_time()\n```",
        f"```json\n{JSON}\n```\nSo it is written.",
        f"So: {JSON}",
        "{",
        '{"na',
        "[",
        "```",
        "[TOOL",
    ],
)
def test_other_json_is_text(form: str, reason: Any, text: str) -> None:
    assert read(form, text, reason=reason).all == (text, "", [], [])


def test_other_json_is_not_held_back() -> None:
    got = Read(FORMATS["hermes"], ['{"te', 'mperature": 3'], TOOLS)
    assert "".join(part.text for part in got.parts[: got.streamed]) == got.text


@SHAPES
def test_a_bare_call_that_does_not_fit_is_an_invalid_one(form: str) -> None:
    for text in (JSON.replace('"Rome"', "1"), JSON[:-3]):
        got = read(form, text)
        assert (got.text, got.calls, got.invalid) == ("", [], [text])


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("<|python_tag|>", f"<|python_tag|>{JSON}"),
        ("<|tool_call|> <|/tool_call|>", f"<|tool_call|>[{JSON}]<|/tool_call|>"),
        ("<TOOLCALL>", f"Well.<TOOLCALL>[{JSON}]</TOOLCALL>"),
        (
            "<|START_ACTION|>",
            f"<|START_ACTION|>[{JSON}]<|END_ACTION|>".replace("name", "tool_name"),
        ),
        ("<|python_tag|>", '<|python_tag|>get_weather.call(city="Rome")'),
        ("<|python_tag|>", "<|python_tag|>[ get_weather(city='Rome')]"),
        ("<|python_start|>", '<|python_start|>[get_weather(city="Rome")]<|python_end|>'),
        ("<seed:tool_call>", FORMATS["seed oss"].write([ROME])),
        (FORMATS["deepseek v3"].template, FORMATS["deepseek v3"].write([ROME])),
    ],
)
def test_a_format_that_the_template_names(template: str, text: str) -> None:
    model = tokenizer(FORMATS["ours"])
    model.chat_template = template
    prompt = Prompt((1,), (Segment("assistant", 1),), tools=TOOLS, tool_format=OURS)

    def parts(text: str) -> Any:
        structure = Structure(markup(model, prompt), ANSWER, Offered(TOOLS))
        return [*structure.feed(text), *structure.finish("stop")]

    assert [(c.name, c.arguments) for part in parts(text) for c in part.calls] == [ROME]
    assert sum(part.invalid is not None for part in parts(text.replace("Rome", "")[:-4])) == 1


@pytest.mark.parametrize("quote", ["`", '"', "'"])
def test_a_quoted_end_of_the_thinking_is_thinking(quote: str) -> None:
    thought = f"It ends with {quote}</think>{quote} then."
    assert read("hermes", f"<think>{thought}</think>Hi").all == ("Hi", thought, [], [])
    got = read("hermes", f'<think>They said "no"</think>{quote}No{quote}, then.')
    assert (got.text, got.reasoning) == (f"{quote}No{quote}, then.", 'They said "no"')


def test_a_quoted_call_that_cannot_be_read_is_text() -> None:
    said = 'Write `<tool_call>{"name": "NAME", "arguments": {}}</tool_call>` for it.'
    assert read("hermes", said).all == (said, "", [], [])
    said = 'A message ends with "<|end|>" there.'
    assert read("harmony", f"<|channel|>final<|message|>{said}<|return|>").text == said


@pytest.mark.parametrize("form", ["hermes", "qwen3 coder", "glm"])
def test_a_mention_holds_back_no_more_than_some_words(form: str) -> None:
    said = "Use <tool_call> tags. " + "And so on. " * 60
    got = Read(FORMATS[form], list(said), TOOLS)
    assert got.all == (said, "", [], [])
    streamed = "".join(part.text for part in got.parts[: got.streamed])
    assert len(said) - len(streamed) < 20
    assert read(form, f"{said}</tool_call>").all == (f"{said}</tool_call>", "", [], [])


@pytest.mark.parametrize("form", ["hermes", "qwen3 coder", "mistral", "harmony"])
def test_a_text_that_is_held_to_a_form_has_no_markers_in_it(form: str) -> None:
    text = '{"a": "<tool_call>{}</tool_call> [TOOL_CALLS]x[ARGS] <think> <|end|><|channel|>"}'
    model = tokenizer(FORMATS[form])
    prompt = Prompt((1,), (Segment("assistant", 1),), tools=TOOLS, tool_format=native_format(model))
    structure = Structure(markup(model, prompt, held=True), ANSWER, Offered(TOOLS))
    parts = [*structure.feed(text), *structure.finish("stop")]
    assert "".join(part.text for part in parts) == text
    assert not any(part.calls or part.invalid or part.state != ANSWER for part in parts)
