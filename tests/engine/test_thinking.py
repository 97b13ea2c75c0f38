"""The markers of thinking, of models that mlx-lm knows and of others."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_guarded_llm.engine.output.pipeline import TextPipeline
from mlx_guarded_llm.engine.output.thinking import thinking
from mlx_guarded_llm.engine.prompt.prompt import Prompt, encode_prompt
from mlx_guarded_llm.params import SamplingParams
from mlx_guarded_llm.request import PromptRequest
from mlx_guarded_llm.testing.chat_templates import chatml
from tests.engine._tokenizers import (
    CONTEXT,
    THINK,
    TOOL,
    Answer,
    byte_level,
    caller,
    plain,
    thinker,
)

OTHERS = [
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
]


def encode(tokenizer: Any, messages: Any, **options: Any) -> Prompt:
    return encode_prompt(tokenizer, PromptRequest(messages, **options), context_window=CONTEXT)


def test_what_mlx_lm_knows_is_taken() -> None:
    marks, model = thinking(thinker()), thinker()
    assert marks is not None
    assert (marks.start, marks.end) == ("<think>", "</think>")
    assert marks.start_tokens == tuple(model.think_start_tokens)
    assert marks.end_tokens == tuple(model.think_end_tokens)
    assert thinking(plain()) is None


def test_the_last_start_among_tokens() -> None:
    marks = thinking(thinker())
    assert marks is not None
    (mark,) = marks.start_tokens
    tokens = [mark, 1, 2, mark, 3]
    assert marks.last_start(tokens, 0) == marks.last_start(tokens, -9) == 3
    assert marks.last_start(tokens[:3], 0) == 0
    assert marks.last_start(tokens[:3], 1) == marks.last_start([], 0) == -1


@pytest.mark.parametrize("markers", OTHERS)
def test_thinking_of_others_is_no_answer(markers: tuple[str, str]) -> None:
    start, end = markers
    model = byte_level(chatml(), added=markers)
    prompt = encode(model, "Hi")
    assert prompt.may_think
    tokens = model.encode(f"{start}It {end}\n\nYes.", add_special_tokens=False)
    answer = Answer(model, tokens, prompt=prompt)
    assert (answer.reasoning, answer.text) == ("It ", "Yes.")
    # The template may begin it, and the caller's text is no marker.
    opens = byte_level(chatml() + start, added=markers)
    assert encode(opens, "Hi").initial_state == "reasoning"
    asked = encode(model, f"Is {start} a word?")
    assert asked.initial_state == "normal"
    assert model.convert_tokens_to_ids(start) not in asked.token_ids


def test_thinking_between_words() -> None:
    """Of models that write the markers with ordinary tokens."""
    model = byte_level(chatml(thinking=True))
    marks = thinking(model)
    assert marks is not None
    assert (marks.start, marks.end, marks.are_tokens) == (*THINK, False)
    tokens = model.encode("<think>It </think>\n\nYes.", add_special_tokens=False)
    answer = Answer(model, tokens, prompt=encode(model, "Hi"))
    assert (answer.reasoning, answer.text) == ("It ", "Yes.")
    opens = byte_level(chatml(thinking="open"))
    prompt = encode(opens, "Hi")
    assert prompt.initial_state == "reasoning"
    assert Answer(opens, "It </think>\n\nYes.", prompt=prompt).text == "Yes."
    # A grammar holds the answer from its beginning: there is no thinking in it.
    pipeline = TextPipeline(opens, prompt, SamplingParams(schema={"type": "object"}))
    said = opens.encode('{"a": "</think>"}', add_special_tokens=False)
    pieces = [*map(pipeline.feed, said), pipeline.finish("stop")]
    assert "".join(piece.text for piece in pieces if piece) == '{"a": "</think>"}'


def test_tokens_around_an_answer_are_no_text() -> None:
    model = byte_level(chatml(), added=("<|START_RESPONSE|>", "<|END_RESPONSE|>"))
    said = model.encode("<|START_RESPONSE|>Yes.<|END_RESPONSE|>", add_special_tokens=False)
    assert Answer(model, said, prompt=encode(model, "Hi")).text == "Yes."


def counted(model: Any, text: str, prompt: Prompt, reason: Any = "stop") -> int:
    """How many tokens of an answer are counted as thinking."""
    pipeline = TextPipeline(model, prompt, SamplingParams())
    for token in model.encode(text, add_special_tokens=False):
        pipeline.feed(token)
    pipeline.finish(reason)
    return pipeline.reasoning_tokens


@pytest.mark.parametrize("are_tokens", [True, False])
def test_tokens_of_thinking_are_counted_with_their_markers(are_tokens: bool) -> None:
    model = thinker() if are_tokens else byte_level(chatml(thinking=True))

    def length(text: str) -> int:
        return len(model.encode(text, add_special_tokens=False))

    prompt = encode(model, "Hi")
    assert counted(model, "It < is </b>.", prompt) == 0
    for thought in ("<think></think>", "<think>It </think>", "<think>a < b, </thin é😀</think>"):
        assert counted(model, f"{thought}\n\nYes, <think>.", prompt) == length(thought)
    for cut in ("<think>It is", "<think>It 😀"):
        assert counted(model, cut, prompt, "length") == length(cut)
    opens = thinker(opens=True) if are_tokens else byte_level(chatml(thinking="open"))
    begun = encode(opens, "Hi")
    assert counted(opens, "It </think>Yes.", begun) == length("It </think>")
    raw = encode(model, "Hi", raw=True)
    assert counted(model, "<think>It </think>Yes.", raw) == 0


def test_a_call_in_the_thinking_is_none_of_it_if_it_is_made() -> None:
    model = caller("json_tools", thinking=True)
    prompt = encode(model, "Hi", tools=[TOOL])
    call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    for rest, own in (
        ("", ""),
        ("</think>", ""),
        ("</think>Yes.", f"{call}</think>Y"),  # the "Y" shows that it is not made
        (" No.</think>Yes.", f"{call} No.</think>"),
    ):
        thought = f"<think>Well. {own}"
        answer = f"<think>Well. {call}{rest}"
        length = len(model.encode(thought, add_special_tokens=False))
        assert counted(model, answer, prompt) == length
