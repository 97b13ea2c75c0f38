"""The text pipeline: characters, stop strings, thinking and tool calls."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.engine.output.pipeline import Piece, TextPipeline
from mlx_guarded_llm.engine.prompt.prompt import Prompt, Segment
from mlx_guarded_llm.params import SamplingParams
from tests.engine._tokenizers import (
    PARSERS,
    TOOL,
    Answer,
    base,
    caller,
    chat,
    metaspace,
    plain,
    sentencepiece,
    thinker,
)

UNHURRIED = settings(deadline=None)  # machines that build are busy

# Whatever Unicode has, and what is hard: bytes of its own, joined, combining, right to
# left, and the replacement character itself.
HARD = [*"a \n\0é你😀\u202e\ufffd", "e\u0301", "👩\u200d💻", "שלום", "مرحبا"]
UNICODE = st.text(max_size=60) | st.lists(st.sampled_from(HARD), max_size=30).map("".join)
FEW = st.sampled_from("abc\n 你")  # few letters, so that stop strings do appear
STOPS = st.lists(st.text(FEW, min_size=1, max_size=6), min_size=1, max_size=5).map(tuple)


def before_first_stop(text: str, stops: tuple[str, ...]) -> str:
    """The whole rule, on the whole text."""
    found = [text.find(stop) for stop in stops if stop in text]
    return text[: min(found)] if found else text


# Characters


@UNHURRIED
@given(UNICODE)
@example(" leading space")
@example("\0")
@pytest.mark.parametrize("tokenizer", [plain, base], ids=["chat", "base"])
def test_the_pieces_are_the_text(tokenizer: Any, text: str) -> None:
    answer = Answer(tokenizer(), text, prompt=chat(tokenizer()))
    assert answer.text == text
    assert answer.reason == "stop"


@UNHURRIED
@given(UNICODE)
def test_no_piece_has_half_a_character(text: str) -> None:
    answer = Answer(plain(), text)
    shown = 0
    for piece in answer.pieces:
        shown += len(piece.text)
        assert text.startswith("".join(p.text for p in answer.pieces)[:shown])
    assert answer.text.count("\ufffd") == text.count("\ufffd")


@UNHURRIED
@given(st.lists(st.integers(0, 402), max_size=60))
def test_any_tokens_become_what_the_tokenizer_decodes(tokens: list[int]) -> None:
    assert Answer(plain(), tokens).text == plain().decode(tokens)


@pytest.mark.parametrize("reason", ["length", "cancelled"])
def test_an_unfinished_character_is_left_out_where_the_answer_was_cut(reason: Any) -> None:
    for size in range(1, 4):
        tokens = plain().encode("a😀")[:-size]
        answer = Answer(plain(), tokens, reason=reason)
        assert answer.streamed == answer.text == "a"
    assert Answer(plain(), "a\ufffd", reason=reason).text == "a\ufffd", "the model wrote that one"


def test_an_unfinished_character_shows_at_an_end_of_the_models() -> None:
    tokens = plain().encode("a😀")[:-1]
    assert Answer(plain(), tokens, reason="stop").text == "a\ufffd"


@pytest.mark.parametrize("token", [-1, 403, 10**6, 2**40])
@pytest.mark.parametrize("tokenizer", [plain, sentencepiece, metaspace])
def test_ids_beyond_the_vocabulary_are_no_text(tokenizer: Any, token: int) -> None:
    tokens = tokenizer().encode("ab", add_special_tokens=False)
    prompt = chat(tokenizer(), raw=True)
    assert Answer(tokenizer(), [token, *tokens, token], prompt=prompt).text.strip() == "ab"


@UNHURRIED
@given(st.text(st.sampled_from("ab ,.é你😀\n"), min_size=1, max_size=30))
def test_sentencepiece_text_comes_whole(text: str) -> None:
    tokens = sentencepiece().encode(text, add_special_tokens=False)
    answer = Answer(sentencepiece(), tokens, prompt=Prompt((1,), (Segment("assistant", 1),)))
    assert answer.text == sentencepiece().decode(tokens) == text


def test_raw_text_keeps_the_space_it_begins_with() -> None:
    for tokenizer in (sentencepiece(), plain()):
        one, both = (tokenizer.encode(text, add_special_tokens=False) for text in ("a", "a b"))
        tokens = both[len(one) :]
        answer = Answer(tokenizer, tokens, prompt=chat(tokenizer, raw=True, tools=[]))
        assert answer.text == " b"


@UNHURRIED
@given(st.text(st.sampled_from("ab ,.\n你é"), max_size=30))
def test_other_tokenizers_go_through_mlx_lm(text: str) -> None:
    tokens = metaspace().encode(text, add_special_tokens=False)
    answer = Answer(metaspace(), tokens, prompt=chat(metaspace(), raw=True))
    assert answer.text == metaspace().decode(tokens)


# Stop strings


@UNHURRIED
@given(st.text(FEW, max_size=40), STOPS, st.sampled_from(["stop", "length", "cancelled"]))
def test_stop_strings_across_tokens(text: str, stops: tuple[str, ...], reason: Any) -> None:
    answer = Answer(plain(), text, stop=stops, reason=reason)
    expected = before_first_stop(text, stops)
    assert answer.text == expected
    assert answer.stopped == (expected != text)
    stopped = answer.stopped and reason == "length"
    assert answer.reason == ("stop" if stopped else reason)


def test_a_stop_string_is_seen_at_once() -> None:
    answer = Answer(plain(), "one\nObservation: two", stop=("\nObservation",))
    assert answer.pieces[-2].stopped
    assert answer.streamed == "one"


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_the_beginning_of_a_stop_string_comes_out_at_the_end(reason: Any) -> None:
    answer = Answer(plain(), "see you\n\nUs", stop=("\n\nUser:",), reason=reason)
    assert answer.streamed == "see you"
    assert answer.text == "see you\n\nUs"
    assert answer.reason == reason


def test_nothing_comes_after_the_stop_string() -> None:
    pipeline = TextPipeline(plain(), chat(plain()), SamplingParams(stop=("b",)))
    pieces = [pipeline.feed(token) for token in plain().encode("a b c")]
    assert [piece and (piece.text, piece.stopped) for piece in pieces] == [
        ("a", False),
        (" ", True),
        None,
    ]
    assert pipeline.finish("length") == Piece(stopped=True, finish_reason="stop")


# Thinking


@pytest.mark.parametrize("opens", [False, True])
@UNHURRIED
@given(st.text(st.sampled_from("ab<>/think \n你"), max_size=30), st.text(FEW, max_size=20))
def test_thinking_is_kept_apart(opens: bool, thought: str, said: str) -> None:
    start = "" if opens else "<think>"
    if "<think>" in thought or "</think>" in thought:
        return
    answer = Answer(thinker(opens), f"{start}{thought}</think>\n\n{said}")
    assert answer.reasoning == thought
    assert answer.text == said.lstrip("\n")


def test_a_prompt_that_closes_the_thinking() -> None:
    answer = Answer(thinker(), "Yes.", prompt=chat(thinker(), thinking=False))
    assert (answer.text, answer.reasoning) == ("Yes.", "")


def test_thinking_that_is_cut_off() -> None:
    answer = Answer(thinker(True), "hm, let me see</thi", reason="length")
    assert answer.text == ""
    assert answer.reasoning == "hm, let me see</thi"
    assert answer.reason == "length"


def test_stop_strings_do_not_end_the_thinking() -> None:
    answer = Answer(thinker(True), "first\n\nsecond</think>\n\nYes.\n\nNo.", stop=("\n\n",))
    assert answer.reasoning == "first\n\nsecond"
    assert answer.text == "Yes."


def test_raw_text_is_not_parsed() -> None:
    text = '<think>a</think>\n<tool_call>{"name": "weather"}</tool_call>'
    tokenizer = caller("json_tools")
    answer = Answer(tokenizer, text, prompt=chat(tokenizer, raw=True, tools=[]))
    assert (answer.text, answer.reasoning, answer.calls) == (text, "", [])


# Tool calls

CITY = {"city": 'Rome "the] eternal', "days": 3}
XML = """\
<function=weather>
<parameter=city>
{city}
</parameter>
<parameter=days>
{days}
</parameter>
</function>"""

CALLS = {
    "json_tools": json.dumps({"name": "weather", "arguments": CITY}),
    "qwen3_coder": XML.format(**CITY),
    "pythonic": f"[weather(city={CITY['city']!r}, days=3)]",
    "mistral": f"weather[ARGS]{json.dumps(CITY)}",
}


def marked(parser: str, body: str) -> str:
    start, end, _ = PARSERS[parser]
    return f"{start}\n{body}\n{end}"


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("thought", ["", "<think>I need it.</think>\n\n"])
@pytest.mark.parametrize("said", ["", "Let me look. "])
def test_tool_calls(parser: str, thought: str, said: str) -> None:
    tokenizer = caller(parser)
    answer = Answer(tokenizer, thought + said + marked(parser, CALLS[parser]))
    assert answer.called() == [("weather", CITY)]
    assert answer.calls[0].id.startswith("call_")
    assert answer.text == said
    assert answer.reasoning == ("I need it." if thought else "")
    assert answer.invalid == []
    assert answer.reason == "tool_calls"


@pytest.mark.parametrize("parser", ["json_tools", "qwen3_coder", "pythonic"])
def test_several_calls_and_text_between(parser: str) -> None:
    one = marked(parser, CALLS[parser])
    answer = Answer(caller(parser), f"a{one}b{one}{one}c")
    assert answer.called() == [("weather", CITY)] * 3
    assert len({call.id for call in answer.calls}) == 3
    assert answer.text == "abc"
    # Each call is out as soon as its marker is; between tags, where an argument could have
    # the marker in it, as soon as the next begins or the answer ends.
    early = 2 if parser == "qwen3_coder" else 3
    assert sum(len(piece.tool_calls) > 0 for piece in answer.pieces[:-1]) == early


def test_newlines_between_calls_are_markup() -> None:
    one = marked("json_tools", CALLS["json_tools"])
    answer = Answer(caller("json_tools"), f"Well,\n{one}\n{one}\n\nDone.\n")
    assert answer.called() == [("weather", CITY)] * 2
    assert answer.text == "Well,\nDone.\n"


@pytest.mark.parametrize("parser", PARSERS)
def test_one_call_ends_an_answer_that_may_have_only_one(parser: str) -> None:
    tokenizer = caller(parser)
    one = marked(parser, CALLS[parser])
    prompt = chat(tokenizer, parallel_tool_calls=False)
    answer = Answer(tokenizer, f"a EN{one} END {one}", prompt=prompt, stop=(" END",))
    assert answer.called() == [("weather", CITY)]
    assert answer.text == "a EN"
    assert answer.reason == "tool_calls"
    if parser != "mistral":  # its calls end where the answer does
        assert answer.stopped
        cut = Answer(tokenizer, one, prompt=prompt, reason="length")
        assert cut.reason == "tool_calls"


def test_a_forced_call_is_not_begun_inside_of_the_thinking() -> None:
    tokenizer = caller("json_tools")
    one = marked("json_tools", CALLS["json_tools"])
    prompt = chat(tokenizer, tool_choice="required")
    answer = Answer(tokenizer, f"<think>say {one}?</think>{one}", prompt=prompt)
    assert answer.called() == [("weather", CITY)]
    assert answer.reasoning == f"say {one}?"
    free = Answer(tokenizer, f"<think>say {one}")
    assert free.called() == [("weather", CITY)]
    assert free.reasoning == "say "
    assert Answer(tokenizer, f"<think>say {one}?").called() == []


@pytest.mark.parametrize("parser", ["mistral", "qwen3_coder", "pythonic"])
def test_a_forced_call_is_read_in_our_format(parser: str) -> None:
    tokenizer = caller(parser)
    prompt = chat(tokenizer, tool_choice="required")
    answer = Answer(tokenizer, marked("json_tools", CALLS["json_tools"]), prompt=prompt)
    assert answer.called() == [("weather", CITY)]


DAY_ONE, DAY_TWO = ({"name": "weather", "arguments": {"days": day}} for day in (1, 2))


@pytest.mark.parametrize(
    ("parser", "body"),
    [
        ("pythonic", "[weather(days=1), weather(days=2)]"),
        ("mistral", 'weather[ARGS]{"days": 1}weather[ARGS]{"days": 2}'),
        ("mistral", json.dumps([DAY_ONE, DAY_TWO])),
        ("json_tools", json.dumps([DAY_ONE, DAY_TWO])),
        ("json_tools", json.dumps([DAY_ONE, {"name": "weather", "parameters": '{"days": 2}'}])),
    ],
)
def test_one_markup_with_several_calls(parser: str, body: str) -> None:
    answer = Answer(caller(parser), marked(parser, body))
    assert answer.called() == [("weather", {"days": 1}), ("weather", {"days": 2})]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[1]",
        "7",
        "null",
        '{"arguments": {}}',
        '{"name": 3}',
        '{"name": "w", "arguments": [1]}',
        '{"name": "w", "arguments": "x"}',
        '[{"name": "w"}, 1]',
        pytest.param("[" * 10**5, id="nested too deep"),
    ],
)
def test_what_cannot_be_read_is_reported(body: str) -> None:
    answer = Answer(caller("json_tools"), f"a<tool_call>{body}</tool_call>b")
    assert answer.calls == []
    assert [call.text for call in answer.invalid] == [body]
    assert answer.invalid[0].error
    assert answer.text == "ab"
    assert answer.reason == "stop"


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("reason", ["stop", "length", "cancelled"])
def test_a_call_that_is_cut_off(parser: str, reason: Any) -> None:
    start = PARSERS[parser][0]
    answer = Answer(caller(parser), f"a{start}{CALLS[parser][:-3]}", reason=reason)
    assert answer.calls == []
    assert [call.text for call in answer.invalid] == [CALLS[parser][:-3]]
    if not (parser == "mistral" and reason == "stop"):
        assert answer.invalid[0].error == "cut off"
    assert answer.reason == reason


@pytest.mark.parametrize("parser", PARSERS)
def test_a_whole_call_without_its_end_marker(parser: str) -> None:
    text = PARSERS[parser][0] + CALLS[parser]
    assert Answer(caller(parser), text).called() == [("weather", CITY)]
    cut = Answer(caller(parser), text, reason="length")
    assert cut.called() == ([("weather", CITY)] if parser == "mistral" else [])
    assert cut.reason == "length"


def test_a_format_that_only_mlx_lm_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = caller("json_tools")

    def parser(text: str, tools: Any) -> Any:
        if text == "x":
            raise KeyError(tools[0]["function"]["name"])
        return {"name": text, "arguments": {"days": 1}}

    monkeypatch.setitem(tokenizer.init_kwargs, "tool_parser_type", "of tomorrow")
    monkeypatch.setattr(tokenizer, "_tool_parser", parser)
    answer = Answer(tokenizer, "a<tool_call>x</tool_call>b<tool_call>weather</tool_call>")
    assert answer.invalid[0].error == "KeyError: 'weather'"
    assert answer.called() == [("weather", {"days": 1})]
    assert answer.text == "ab"
    other = Answer(tokenizer, "<tool_call>storm</tool_call>")
    assert "no tool 'storm' was offered" in other.invalid[0].error


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("options", [{"tools": []}, {"tool_choice": "none", "tools": [TOOL]}])
def test_markup_of_a_call_nobody_offered_is_text(parser: str, options: dict[str, Any]) -> None:
    tokenizer = caller(parser)
    text = "a" + marked(parser, CALLS[parser])
    answer = Answer(tokenizer, "<think>b</think>" + text, prompt=chat(tokenizer, **options))
    assert (answer.text, answer.reasoning, answer.calls) == (text, "b", [])
    assert answer.reason == "stop"


def test_stop_strings_and_calls() -> None:
    one = marked("json_tools", CALLS["json_tools"])
    answer = Answer(caller("json_tools"), f"a{one} END b{one}", stop=("weather", " END"))
    assert answer.text == "a"
    assert len(answer.calls) == 1
    assert answer.reason == "tool_calls"


MARKERS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]"]


@UNHURRIED
@given(
    st.lists(
        st.sampled_from([*MARKERS, CALLS["json_tools"], "aa", "a", "\n", "<", "你"]), max_size=14
    ),
    st.sampled_from(["json_tools", "mistral"]),
    st.sampled_from(["stop", "length", "cancelled"]),
)
def test_no_order_of_markers_loses_or_leaks(parts: list[str], parser: str, reason: Any) -> None:
    answer = Answer(caller(parser), "".join(parts), reason=reason, stop=("aa",))
    assert "aa" not in answer.text
    # A thinking begins before the answer does; later its marker is text.
    assert not answer.text.lstrip().startswith("<think>")
    if not (answer.calls or answer.invalid):  # between which texts would be put together
        assert PARSERS[parser][0] + CALLS["json_tools"] not in answer.text
    again = Answer(caller(parser), "".join(parts), reason=reason, stop=("aa",))
    assert (answer.text, answer.reasoning) == (again.text, again.reasoning)
    assert answer.called() == again.called()
    if not answer.stopped:
        shown = answer.text + answer.reasoning + "".join(call.text for call in answer.invalid)
        characters = sum("你" in part for part in parts)
        assert shown.count("你") == characters
