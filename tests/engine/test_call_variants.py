"""Calls as models write them beside the rule: read where the meaning is clear, else invalid."""

from __future__ import annotations

from typing import Any

import mlx_lm  # noqa: F401 - the first import of MLX, on the main thread
import pytest

from tests.engine._call_formats import FORMATS, Call, Read, tool

STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
WEATHER = tool(
    "get_weather",
    {
        "city": STRING,
        "days": INTEGER,
        "ok": {"type": "boolean"},
        "tags": {"type": "array", "items": STRING},
        "more": {"type": "object"},
        "n": NUMBER,
    },
)
NOW = tool("get_time", {})
TOOLS = (WEATHER, NOW)
ROME: Call = ("get_weather", {"city": "Rome"})
TIME: Call = ("get_time", {})
JSON = '{"name": "get_weather", "arguments": {"city": "Rome"}}'


def read(form: str, text: str) -> Read:
    """As one piece, and the same character by character."""
    whole = Read(FORMATS[form], [text], TOOLS)
    assert Read(FORMATS[form], list(text), TOOLS).all == whole.all
    return whole


@pytest.mark.parametrize(
    ("form", "text", "calls"),
    [
        ("hermes", '<tool_call>{"name": "get_time", "arguments": null}</tool_call>', [TIME]),
        ("hermes", '<tool_call>{"name": "get_time", "arguments": ""}</tool_call>', [TIME]),
        ("hermes", '<tool_call>{"name": "get_time"}</tool_call>', [TIME]),
        ("hermes", f'<tool_call>{{"type": "function", "function": {JSON}}}</tool_call>', [ROME]),
        ("hermes", f"<tool_call>{JSON.replace('get_', 'functions.get_')}</tool_call>", [ROME]),
        ("qwen3 coder", f"<tool_call>\n{JSON}\n</tool_call>", [ROME]),
        ("qwen3 coder", '<function=get_weather>{"city": "Rome"}</function>', [ROME]),
        ("glm", f"<tool_call>{JSON}</tool_call>", [ROME]),
        ("glm", '<tool_call>get_weather\n{"city": "Rome"}\n</tool_call>', [ROME]),
        ("mistral", '[TOOL_CALLS]get_weather{"city": "Rome"}get_time{}', [ROME, TIME]),
        ("mistral", f"[TOOL_CALLS]{JSON}", [ROME]),
        ("pythonic", f"<|tool_call_start|>[{JSON}]<|tool_call_end|>", [ROME]),
        (
            "kimi k2",
            "<|tool_call_begin|>get_time:0<|tool_call_argument_begin|> <|tool_call_end|>",
            [TIME],
        ),
        (
            "harmony",
            '<|channel|>commentary to=get_weather json<|message|>{"city": "Rome"}<|call|>',
            [ROME],
        ),
    ],
)
def test_variants(form: str, text: str, calls: Any) -> None:
    assert read(form, text).all == ("", "", calls, [])


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("tags", "['a', \"b\"]", ["a", "b"]),
        ("more", "{'a': True, 'b': [None, 1.5]}", {"a": True, "b": [None, 1.5]}),
        ("ok", "TRUE", True),
        ("ok", " False ", False),
        ("days", "+5", 5),
        ("n", "1.", 1.0),
        ("n", "-.5", -0.5),
        ("days", "007", None),
        ("n", "1.e400", None),
        ("n", "\u0661", None),
        ("tags", "('a', 'b')", None),
        ("tags", "['a'", None),
        ("more", "{'a': 1, 'a': 2}", None),
        ("more", "{'a': f()}", None),
        ("more", "{'a': 1} x", None),
        ("days", "", None),
        ("city", "['a']", "['a']"),
        ("city", " TRUE", " TRUE"),
    ],
)
@pytest.mark.parametrize("form", ["qwen3 coder", "glm", "minimax"])
def test_values_that_are_almost_json(form: str, key: str, written: str, value: Any) -> None:
    text = FORMATS[form].write([("get_weather", {key: "@@"})]).replace("@@", written)
    got = read(form, text)
    assert repr(got.calls) == repr([] if value is None else [("get_weather", {key: value})])
    assert len(got.invalid) == (value is None)


@pytest.mark.parametrize("form", ["qwen3 coder", "qwen3 coder, bare", "glm", "minimax", "atem"])
def test_an_argument_that_is_not_closed_takes_in_no_other(form: str) -> None:
    text = FORMATS[form].write([("get_weather", {"city": "Rome", "days": 3})])
    whole = read(form, text)
    assert whole.calls == [("get_weather", {"city": "Rome", "days": 3})]
    close = next(
        end for end in ("</arg_value>", "</parameter>", "</atem:parameter>") if end in text
    )
    got = read(form, text.replace(close, "", 1))
    assert (got.calls, len(got.invalid)) == ([], 1)


@pytest.mark.parametrize("form", ["qwen3 coder", "glm", "minimax"])
def test_what_is_said_of_tags_after_a_call_does_not_undo_it(form: str) -> None:
    said = "It has a </parameter> or </arg_value> and a </function> tag."
    for call in (ROME, TIME):
        got = read(form, f"{FORMATS[form].write([call])}\n{said}")
        assert got.all == (said, "", [call], [])


@pytest.mark.parametrize("said", ["Write <function=foo> in it.", "Some `<function=get_time>` tag."])
def test_a_mention_of_a_function_is_text(said: str) -> None:
    assert read("qwen3 coder", said).all == (said, "", [], [])
