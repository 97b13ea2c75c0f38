"""Prompts that end with the beginning of an answer."""

from typing import Any

import pytest

from mlx_guarded_llm.engine.prompt.prompt import Prompt, encode_prompt
from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.request import PromptRequest
from tests.engine._families import family
from tests.engine._tokenizers import CONTEXT, THINK, TOOL, byte_level, plain, thinker

USER = {"role": "user", "content": "Hi"}


def encode(tokenizer: Any, prompt: Any, **options: Any) -> Prompt:
    return encode_prompt(tokenizer, PromptRequest(prompt, **options), context_window=CONTEXT)


def text(tokenizer: Any, prompt: Any, **options: Any) -> str:
    return str(tokenizer.decode(encode(tokenizer, prompt, **options).token_ids))


CONTINUE: Any = {"continue_final_message": True}


@pytest.mark.parametrize(
    "name", ["chatml", "llama-3", "llama-3.2-vision", "mistral-7", "gemma-1", "kimi-vl", "qwen-3"]
)
def test_a_beginning_is_continued_whatever_the_template_does(name: str) -> None:
    tokenizer = family(name).tokenizer
    messages = [USER, {"role": "assistant", "content": "Good </s> mor"}]
    prompt = encode(tokenizer, messages, **CONTINUE)
    shown = tokenizer.decode(prompt.token_ids)
    assert shown.endswith("Good </s> mor")
    assert "Hi" in shown
    assert prompt.continues_text
    assert not prompt.may_think
    old_way = {"template_kwargs": CONTINUE}
    assert encode(tokenizer, messages, **old_way).token_ids == prompt.token_ids


def test_spaces_at_the_end_of_a_beginning() -> None:
    messages = [USER, {"role": "assistant", "content": "Good mor \n"}]
    assert text(plain(), messages, **CONTINUE).endswith("Good mor \n")
    trimming = family("llama-3").tokenizer
    assert text(trimming, messages, **CONTINUE).endswith("Good mor")


@pytest.mark.parametrize(
    ("said", "shown", "state"),
    [
        ("<think>\nSo", "\n<think>\nSo", "reasoning"),
        ("So</think>It", "\n<think>\nSo</think>It", "normal"),
        ("<think>\nSo\n</think>\n\nIt", "\n<think>\nSo\n</think>\n\nIt", "normal"),
        ("It", "assistant\nIt", "normal"),
    ],
)
def test_thinking_that_is_continued_stays_as_it_is(said: str, shown: str, state: str) -> None:
    prompt = encode(thinker(True), [USER, {"role": "assistant", "content": said}], **CONTINUE)
    decoded = thinker(True).decode(prompt.token_ids)
    assert decoded.endswith(shown)
    assert decoded.count("<think>") == shown.count("<think>")
    assert prompt.initial_state == state


def test_thinking_is_continued_where_the_template_drops_it() -> None:
    tokenizer = byte_level(
        "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: <think>{% endif %}",
        added=THINK,
    )
    said = "<think>hm</think>Good"
    shown = text(tokenizer, [USER, {"role": "assistant", "content": said}], **CONTINUE)
    assert shown == f"user: Hi\nassistant: {said}"


def test_a_beginning_that_the_template_drops_is_continued() -> None:
    tokenizer = byte_level(
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %} A: "
    )
    shown = text(tokenizer, [USER, {"role": "assistant", "content": "Good mor"}], **CONTINUE)
    assert shown == "Hi A: Good mor"


def test_what_stands_beside_the_last_question_stays_when_an_answer_is_continued() -> None:
    system = {"role": "system", "content": "Be kind."}
    messages = [system, USER, {"role": "assistant", "content": "Good mor"}]
    tokenizer = family("mistral-3").tokenizer  # writes it there only if nothing follows
    shown = text(tokenizer, messages, tools=[TOOL], **CONTINUE)
    assert "Be kind." in shown
    assert "weather" in shown
    assert shown.endswith("[/INST]Good mor")


def test_an_earlier_question_that_is_dropped_is_refused() -> None:
    tokenizer = byte_level("{{ messages[-1].content }}")
    talk = [
        {"role": "user", "content": "Be kind"},
        {"role": "assistant", "content": "I am"},
        USER,
        {"role": "assistant", "content": "Good mor"},
    ]
    with pytest.raises(InvalidRequest, match=r"messages\[0\].*'Be kind'"):
        encode(tokenizer, talk, **CONTINUE)


def test_an_answer_is_not_continued_as_thinking() -> None:
    tokenizer = byte_level(
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}A: <think>",
        added=THINK,
    )
    with pytest.raises(InvalidRequest, match=r"messages\[1\].*'Good mor'"):
        encode(tokenizer, [USER, {"role": "assistant", "content": "Good mor"}], **CONTINUE)
