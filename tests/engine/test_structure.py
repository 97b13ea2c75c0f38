"""Where an answer's text stands: what a marker means depends on where it is."""

from __future__ import annotations

import json
from typing import Any

import mlx_lm  # noqa: F401 - the first import of MLX, on the main thread
import pytest

from mlx_guarded_llm.engine.output.calls import reading
from mlx_guarded_llm.engine.output.structure import REASONING
from tests.engine._call_formats import FORMATS, Read, tool

STRING, INTEGER, NULL = {"type": "string"}, {"type": "integer"}, {"type": "null"}
NOW = tool("get_time", {})
FIND = tool("find", {"x": STRING})
EDIT = tool("edit", {"old": STRING})
HERMES, QWEN, GLM = FORMATS["hermes"], FORMATS["qwen3 coder"], FORMATS["glm"]
MINIMAX, MISTRAL, HARMONY = FORMATS["minimax"], FORMATS["mistral"], FORMATS["harmony"]


def read(form: Any, text: str, *tools: Any, **options: Any) -> Read:
    """As one piece, and the same character by character."""
    whole = Read(form, [text], tools, **options)
    assert Read(form, list(text), tools, **options).all == whole.all
    return whole


# Thinking


@pytest.mark.parametrize("tools", [(), (NOW,)])
def test_a_marker_of_thinking_in_the_answer_is_text(tools: Any) -> None:
    said = "Open it with <think> and close it with </think>."
    assert read(HERMES, f"<think>Easy.</think>\n\n{said}", *tools).all == (said, "Easy.", [], [])
    assert read(HERMES, said, *tools).text == said


def test_a_thinking_may_begin_again_before_the_answer() -> None:
    got = read(HERMES, "<think>a</think>\n<think>b</think>\nDone. <think>")
    assert (got.text, got.reasoning) == ("Done. <think>", "ab")


@pytest.mark.parametrize("form", [HERMES, QWEN, GLM, MISTRAL], ids=str)
def test_a_marker_of_a_call_in_the_thinking_is_thinking(form: Any) -> None:
    marker = form.write([("get_time", {})])[:11]
    thought = f"Some use {marker} tags, I need none."
    got = read(form, f"<think>{thought}</think>Hello!", NOW)
    assert got.all == ("Hello!", thought, [], [])
    got = read(form, f"{thought}</think>Hello!", NOW, state=REASONING)
    assert got.all == ("Hello!", thought, [], [])


def test_a_call_follows_a_mention_in_the_thinking() -> None:
    call = HERMES.write([("get_time", {})])
    got = read(HERMES, f"<think>With <tool_call> then.</think>{call}", NOW)
    assert got.all == ("", "With <tool_call> then.", [("get_time", {})], [])


def test_a_call_that_was_thought_of_and_then_made() -> None:
    call = HERMES.write([("get_time", {})])
    got = read(HERMES, f"<think>So {call}\n</think>\n{call}", NOW)
    assert got.calls == [("get_time", {})]
    assert got.reasoning == f"So {call}\n"


def test_an_unfinished_call_in_the_thinking_is_thinking() -> None:
    text = '<think>say <tool_call>{"name": "get_time", "arg'
    for reason in ("stop", "length"):
        got = read(HERMES, text, NOW, reason=reason)
        assert got.all == ("", text.removeprefix("<think>"), [], [])


# Prose


@pytest.mark.parametrize("text", ["Use <tool_call> tags.", "It is `<tool_call>`, and `[ARGS]`."])
@pytest.mark.parametrize("form", [HERMES, QWEN, GLM], ids=str)
def test_a_mention_in_prose_is_text(form: Any, text: str) -> None:
    assert read(form, text, NOW).all == (text, "", [], [])


def test_a_quoted_mention_holds_nothing_up() -> None:
    got = Read(HERMES, ["Write `<tool_call>` then", " more"], [NOW])
    assert "".join(part.text for part in got.parts[: got.streamed]) == got.text


def test_a_call_follows_a_mention_in_prose() -> None:
    got = read(HERMES, f"Use <tool_call> tags. {HERMES.write([('get_time', {})])}", NOW)
    assert got.all == ("Use <tool_call> tags. ", "", [("get_time", {})], [])


# Calls


@pytest.mark.parametrize(
    "text",
    ["<tool_call></tool_call>Hello.", "<tool_call>I would now look it up.</tool_call>Hello."],
)
@pytest.mark.parametrize("form", [HERMES, QWEN, GLM], ids=str)
def test_a_call_that_nobody_made(form: Any, text: str) -> None:
    got = read(form, text, NOW)
    assert (got.text, got.calls, len(got.invalid)) == ("Hello.", [], 1)


@pytest.mark.parametrize("body", ["get_time</arg_value>", "unknown", "get_time please", "get_tim"])
def test_what_glm_writes_that_is_no_call(body: str) -> None:
    got = read(GLM, f"<tool_call>{body}</tool_call>", NOW)
    assert (got.calls, got.invalid) == ([], [body])


@pytest.mark.parametrize(
    "arguments",
    [
        '{"x": 1}',
        '{"x": null}',
        '"x"',
        "[]",
        '{"x": "a", "x": "b"}',
        '{"x": "\\ud800"}',
        '{"x": "a"',
    ],
)
def test_arguments_that_do_not_fit(arguments: str) -> None:
    got = read(HERMES, f'<tool_call>{{"name": "find", "arguments": {arguments}}}</tool_call>', FIND)
    assert (got.calls, len(got.invalid)) == ([], 1)


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("123456789012345678901234567890", 123456789012345678901234567890),
        ("1e22", 1e22),
        ("-0.1", -0.1),
        ("1e400", None),
        ("-1e-400", None),
        ("NaN", None),
        ("Infinity", None),
        ("0e0", 0.0),
        ("1" * 5000, None),
    ],
)
@pytest.mark.parametrize("form", [HERMES, QWEN, GLM, MINIMAX, FORMATS["pythonic"]], ids=str)
def test_numbers_come_exactly_or_not_at_all(form: Any, number: str, value: Any) -> None:
    text = form.write([("pay", {"n": 10**9})]).replace(str(10**9), number)
    got = read(form, text, tool("pay", {"n": {"type": "number"}}))
    assert got.calls == ([] if value is None else [("pay", {"n": value})])
    assert len(got.invalid) == (value is None)


@pytest.mark.parametrize(
    "cut", ["</tool_call>", "</parameter>", "</parameter>\n</function>\n</tool_call>"]
)
@pytest.mark.parametrize("form", FORMATS.values(), ids=list(FORMATS))
def test_an_end_marker_inside_of_an_argument(form: Any, cut: str) -> None:
    body = f"A block ends with {cut} on its own."
    got = read(form, form.write([("edit", {"old": body})]), EDIT)
    if not any(mark in cut for mark in form.unclear):
        assert got.calls == [("edit", {"old": body})] and got.text == ""
    else:
        assert got.calls in ([], [("edit", {"old": body})])
        assert got.calls or got.invalid


def test_a_string_that_is_never_closed_ends_at_the_marker() -> None:
    got = read(HERMES, '<tool_call>{"name": "find", "arguments": {"x": "a}</tool_call>\nBye.', FIND)
    assert (got.text, got.calls, len(got.invalid)) == ("Bye.", [], 1)


CODE = "    def foo():\n        return 1\n"


@pytest.mark.parametrize("form", FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize("text", [CODE, "", "\n", " ", "\n\n x \n\n", "Null", "null", "true", "12"])
def test_a_string_keeps_every_character(form: Any, text: str) -> None:
    assert read(form, form.write([("edit", {"old": text})]), EDIT).calls == [
        ("edit", {"old": text})
    ]


@pytest.mark.parametrize(
    ("schema", "written", "value"),
    [
        ({"anyOf": [STRING, NULL]}, "12345", "12345"),
        ({"type": ["string", "null"]}, "12345", "12345"),
        ({"anyOf": [STRING, NULL]}, "null", None),
        ({"anyOf": [INTEGER, NULL]}, "3", 3),
        ({"oneOf": [INTEGER, NULL]}, "null", None),
        ({"type": ["integer", "null"]}, "None", None),
        ({"anyOf": [{"type": "boolean"}, NULL]}, "true", True),
        ({"type": "boolean"}, "False", False),
        ({"$ref": "#/$defs/id"}, "7", "7"),
        ({"anyOf": [{"$ref": "#/$defs/count"}, NULL]}, "7", 7),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, 2]}, "1", 1),
        ({"enum": ["on", None]}, "null", None),
        ({"const": 5}, "5", 5),
        ({"const": "5"}, "5", "5"),
        ({"allOf": [STRING, {"minLength": 1}]}, "[1]", "[1]"),
        ({"type": "array", "items": INTEGER}, "[1, 2]", [1, 2]),
        ({"anyOf": [STRING, {"type": "array", "items": STRING}]}, '["a"]', ["a"]),
        ({"type": "object"}, '{"a": {"b": null}}', {"a": {"b": None}}),
        (STRING, '"quoted"', '"quoted"'),
    ],
)
@pytest.mark.parametrize("form", [QWEN, GLM, MINIMAX], ids=str)
def test_the_schema_says_what_a_text_stands_for(
    form: Any, schema: Any, written: str, value: Any
) -> None:
    defs = {"id": STRING, "count": INTEGER}
    one = tool("find", {"x": schema}, **{"$defs": defs})
    (call,) = read(form, form.write([("find", {"x": "@@"})]).replace("@@", written), one).calls
    assert repr(call) == repr(("find", {"x": value}))


@pytest.mark.parametrize(
    ("schema", "written"), [(INTEGER, "three"), ({"enum": ["a"]}, "b"), (NULL, "")]
)
def test_a_text_that_stands_for_nothing(schema: Any, written: str) -> None:
    text = GLM.write([("find", {"x": written})])
    got = read(GLM, text, tool("find", {"x": schema}))
    assert (got.calls, len(got.invalid)) == ([], 1)


def test_two_functions_in_one_tag_and_a_call_without_its_marker() -> None:
    tools = [tool("pay", {"amount": INTEGER}), tool("refund", {"amount": INTEGER})]
    calls = [("pay", {"amount": 1}), ("refund", {"amount": 2})]
    for name in ("qwen3 coder, one tag", "qwen3 coder, bare"):
        assert read(QWEN, FORMATS[name].write(calls), *tools).calls == calls
    bare = FORMATS["qwen3 coder, bare"].write(calls[:1])
    got = read(QWEN, f"I pay.\n\n{bare}</tool_call>", *tools)
    assert got.all == ("I pay.\n\n", "", calls[:1], [])


def test_ids_of_calls_and_dotted_names() -> None:
    for name in ("mistral", "mistral v11", "mistral list"):
        text = FORMATS[name].write([("weather.get", {"x": "a"})])
        assert read(MISTRAL, text, tool("weather.get", {"x": STRING})).calls == [
            ("weather.get", {"x": "a"})
        ]
    got = read(MISTRAL, f"{text}Hello.", tool("weather.get", {"x": STRING}))
    assert (got.text, len(got.calls)) == ("Hello.", 1)


@pytest.mark.parametrize("schema", [{"type": "any"}, {"$ref": "#/nothing"}, {"pattern": "("}, 5])
def test_a_schema_that_is_wrong_refuses_nothing(schema: Any) -> None:
    got = read(MISTRAL, MISTRAL.write([("find", {"x": "a"})]), tool("find", {"x": schema}))
    assert got.calls == [("find", {"x": "a"})]


def test_a_reference_to_elsewhere_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", None)
    one = tool("find", {"x": {"$ref": "http://localhost:1/schema"}})
    assert read(MISTRAL, MISTRAL.write([("find", {"x": "a"})]), one).calls


def test_strict_false_takes_any_object() -> None:
    one = tool("find", {"x": INTEGER}, additionalProperties=False)
    one["function"]["strict"] = False
    for form in (MISTRAL, GLM):
        call = ("find", {"y": "a", "x": "b"})
        assert read(form, form.write([call]), one).calls == [call]


# Channels


def channels(text: str, *tools: Any) -> Any:
    got = read(HARMONY, text, *tools)
    assert "<|" not in got.text + got.reasoning
    return got.all


def test_channels() -> None:
    thought = "<|channel|>analysis<|message|>A sum.<|end|>"
    said = "<|start|>assistant<|channel|>final<|message|>Four."
    assert channels(thought + said) == ("Four.", "A sum.", [], [])
    assert channels(f"{thought}{thought}{said}<|return|>") == ("Four.", "A sum.A sum.", [], [])
    assert channels("<|channel|>final <|constrain|>json<|message|>{}") == ("{}", "", [], [])
    assert channels("<|channel|>commentary<|message|>I look.<|end|>" + said)[0] == "I look.Four."
    assert channels("Four.") == ("Four.", "", [], [])
    assert channels("<|channel|>analysis<|message|>cut") == ("", "cut", [], [])


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.find <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.find json<|message|>",
        "<|channel|>commentary to=functions.find<|message|>",
        "<|channel|>analysis to=functions.find <|constrain|>json<|message|>",
        " to=functions.find<|channel|>commentary <|constrain|>json<|message|>",
    ],
)
@pytest.mark.parametrize("end", ["<|call|>", "<|end|>", ""])
def test_calls_in_channels(header: str, end: str) -> None:
    body = json.dumps({"x": "a <|call|> b"})
    assert channels(f"{header}{body}{end}", FIND) == ("", "", [("find", {"x": "a <|call|> b"})], [])
    before = "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant"
    assert channels(f"{before}{header}{body}{end}", FIND)[1:3] == (
        "Look.",
        [("find", {"x": "a <|call|> b"})],
    )
    assert channels(f"{header}{{}}{end}")[2:] == (
        [],
        ["functions.find" + header.split("functions.find")[1] + "{}"],
    )


def test_a_call_of_a_tool_that_gpt_oss_was_not_given() -> None:
    text = "<|channel|>analysis to=python code<|message|>1 + 1<|call|>"
    assert channels(text, FIND)[2:] == ([], ["python code<|message|>1 + 1"])


# Size


@pytest.mark.parametrize("form", FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize(
    "unit", ["[a1(", '{"a":', "</tool_call>", "<tool_call>", '"', "\\", "<x ", " "]
)
def test_a_huge_call_is_read_in_linear_time(
    form: Any, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that is not linear would run into the suite's timeout."""
    monkeypatch.setattr(reading, "MAX_CHARACTERS", 100_000)
    start = form.write([("edit", {"old": "@@"})]).split("@@")[0]
    text = start + unit * (200_000 // len(unit))
    for size in (7, 100_000):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        for reason in ("stop", "length"):
            got = Read(form, pieces, [EDIT], reason=reason)
            assert got.calls == []
            assert len(got.text + "".join(got.invalid)) > 100_000


def test_a_call_has_a_longest_length() -> None:
    for length, calls in ((900_000, 1), (1_000_001, 0)):
        text = HERMES.write([("edit", {"old": "x" * length})])
        got = Read(HERMES, [text[at : at + 50] for at in range(0, len(text), 50)], [EDIT])
        assert (len(got.calls), len(got.invalid)) == (calls, 1 - calls)
