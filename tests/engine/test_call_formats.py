"""Every format, against calls that are made up: the call or an invalid one, never another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import mlx_lm  # noqa: F401 - the first import of MLX, on the main thread
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.engine._call_formats import FORMATS, MARKS, THINK, Call, Format, Read, tool

EVERY = pytest.mark.parametrize("form", FORMATS.values(), ids=list(FORMATS))
FEW = settings(deadline=None, max_examples=10)  # each is read hundreds of times

NAMES = st.sampled_from(["get_weather", "weather.get", "mcp-find", "a", "get"])
KEYS = st.sampled_from(["city", "days", "x_1", "größe"])
TEXTS = st.lists(
    st.sampled_from(
        [
            *MARKS,
            '"',
            "'",
            "\\",
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\n",
            " ",
            "é",
            "你",
            "😀",
            "</",
            "<",
            "1",
            "null",
        ]
    )
    | st.text(max_size=5).filter(lambda text: "\r" not in text),
    max_size=5,
).map("".join)
NUMBERS = (
    st.integers()
    | st.integers(-(10**60), 10**60)
    | st.floats(allow_nan=False, allow_infinity=False)
)
SCALARS = TEXTS | NUMBERS | st.booleans() | st.none()
VALUES = SCALARS | st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(KEYS, VALUES, max_size=3)
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=2)

KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array"}


def kind(value: Any) -> dict[str, Any]:
    if value is None:
        return {"type": "null"}
    return {"type": KINDS.get(type(value), "object")}


def offered(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Tools that these calls fit; each argument has the types it was given somewhere."""
    tools = []
    for name in dict.fromkeys(name for name, _ in calls):
        properties: dict[str, Any] = {}
        for other, arguments in calls:
            for key, value in arguments.items() if other == name else ():
                before = properties.get(key)
                properties[key] = {"anyOf": [before, kind(value)]} if before else kind(value)
        tools.append(tool(name, properties))
    return tools


def is_unclear(form: Format, calls: Sequence[Call]) -> bool:
    """A string has marks of the format in it, or a text may stand for several values."""
    written = json.dumps(calls, ensure_ascii=False)
    if any(json.dumps(mark, ensure_ascii=False)[1:-1] in written for mark in form.unclear):
        return True
    return bool(form.unclear) and '"anyOf"' in json.dumps(offered(calls))


def are(read: Sequence[Call], made: Sequence[Call]) -> bool:
    """The same calls, with values of the same types, in the same order."""
    return repr([(n, sorted(a.items())) for n, a in read]) == repr(
        [(n, sorted(a.items())) for n, a in made]
    )


def are_some(read: Sequence[Call], made: Sequence[Call]) -> bool:
    """Some of these calls, in their order, and no other."""
    left = iter(made)
    return all(any(are([one], [other]) for other in left) for one in read)


def ink(text: str) -> str:
    return "".join(text.split())


def unmarked(marks: Sequence[str], text: str) -> str:
    for mark in marks:
        text = text.replace(mark, "")
    return text


def check_whole(form: Format, calls: Sequence[Call], read: Read, text: str) -> None:
    """The answer was `text` and these calls."""
    assert ink(read.text).startswith(ink(text))
    if not is_unclear(form, calls):
        assert are(read.calls, calls), read.parts
        assert (ink(read.text), read.invalid) == (ink(text), [])
    elif not are_some(read.calls, calls):
        # Not to be told apart: these calls are written in the very same way.
        assert form.write(read.calls) == form.write(calls), read.parts
    assert read.calls or read.invalid


@EVERY
def test_an_argument_that_ends_as_a_call_does(form: Format) -> None:
    """Whatever part of the end of a call and the beginning of the next it has in it."""
    one, two = (form.write([("get", {"city": "@"})] * count) for count in (1, 2))
    tail, between = one.split("@")[1], two.split("@")[1]
    last = between.rindex("city")  # with the name of an argument, a second call has begun
    for text in (tail, f"{tail}<tool_call>", *(between[:at] for at in range(1, last + 1))):
        calls: list[Call] = [("get", {"city": text})]
        written, tools = form.write(calls), offered(calls)
        whole = Read(form, [written], tools)
        check_whole(form, calls, whole, "")
        assert Read(form, list(written), tools).all == whole.all


@EVERY
@FEW
@example([("get_weather", {"city": "</parameter>\n</function>\n</tool_call><tool_call>"})], "")
@given(CALLS, st.sampled_from(["", "Let me see. "]))
def test_the_call_or_an_invalid_one(form: Format, calls: list[Call], before: str) -> None:
    text = before + form.write(calls)
    tools = offered(calls)
    whole = Read(form, [text], tools)
    check_whole(form, calls, whole, before)
    assert Read(form, list(text), tools).all == whole.all
    for at in range(1, len(text)):
        assert Read(form, [text[:at], text[at:]], tools).all == whole.all, at


@EVERY
@FEW
@given(CALLS, st.sampled_from(["stop", "length", "cancelled"]))
def test_cut_at_every_position(form: Format, calls: list[Call], reason: Any) -> None:
    text = form.write(calls)
    tools = offered(calls)
    for at in range(len(text)):
        read = Read(form, [text[:at]], tools, reason=reason)
        if not are_some(read.calls, calls):
            assert is_unclear(form, calls), (text[:at], read.parts)
            assert ink(text).startswith(ink(form.write(read.calls)[:at]))
        # Nothing is lost: what is not in a call is somewhere else, before it or behind.
        if not read.calls and text[:at].strip():
            invalid = "".join(read.invalid)
            said, shown = ink(text[:at]), (ink(read.text + invalid), ink(invalid + read.text))
            # A mark in a string may have been taken for one: the format's end, if the string
            # is not closed behind it.
            marks = form.unclear if is_unclear(form, calls) else (read.end,)
            said, shown = (
                unmarked(marks, said),
                (unmarked(marks, shown[0]), unmarked(marks, shown[1])),
            )
            assert said.endswith(shown)
            assert ink(read.text) or read.invalid or form.parser == "harmony"


@EVERY
@FEW
@given(CALLS, st.sampled_from(["Done.", "I am {done}: a < b", "你好"]))
def test_text_after_the_calls(form: Format, calls: list[Call], after: str) -> None:
    text = f"{form.write(calls)}\n\n{after}"
    read = Read(form, [text], offered(calls))
    assert Read(form, list(text), offered(calls)).all == read.all
    if is_unclear(form, calls):
        assert ink(after) in ink(read.text + "".join(read.invalid))
    else:
        assert are(read.calls, calls)
        assert read.text.strip("\n") == after


@EVERY
@FEW
@given(CALLS, TEXTS)
def test_thinking_before_the_calls(form: Format, calls: list[Call], thought: str) -> None:
    if form.parser == "harmony" or any(mark in thought for mark in THINK):
        return
    text = f"<think>{thought}</think>\n\n{form.write(calls)}"
    read = Read(form, [text], offered(calls))
    assert Read(form, list(text), offered(calls)).all == read.all
    assert read.reasoning == thought
    check_whole(form, calls, read, "")


@EVERY
@FEW
@given(CALLS)
def test_a_call_in_the_thinking(form: Format, calls: list[Call]) -> None:
    """It is made if the answer ends with it, and thought of if anything follows."""
    if form.parser in ("harmony", "") or is_unclear(form, calls):
        return
    written = form.write(calls)
    for text in (f"<think>So: {written}", f"<think>So: {written}\n</think>"):
        read = Read(form, list(text), offered(calls))
        assert are(read.calls, calls), read.parts
        assert read.text.strip() == ""
        assert read.reasoning.strip() == "So:"
    text = f"<think>So: {written} or not.</think>Hello."
    read = Read(form, list(text), offered(calls))
    assert Read(form, [text], offered(calls)).all == read.all
    assert (read.calls, read.invalid, read.text) == ([], [], "Hello.")
    assert ink(read.reasoning) == ink(f"So: {written} or not.")


@EVERY
@FEW
@given(CALLS, st.text(st.sampled_from("<>/think_calgrue=|[]{}\"' \n1"), max_size=40))
def test_other_text_between_the_markers_is_no_call(
    form: Format, calls: list[Call], text: str
) -> None:
    written, tools = form.write(calls), offered(calls)
    for at in range(0, len(written), 7):
        broken = written[:at] + text + written[at:]
        read = Read(form, [broken], tools)
        assert Read(form, list(broken), tools).all == read.all
        for name, arguments in read.calls:
            known = next(t["function"] for t in tools if t["function"]["name"] == name)
            if form.unclear:  # else JSON Schema says what may be added
                assert arguments.keys() <= known["parameters"]["properties"].keys()
