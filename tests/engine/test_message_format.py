"""The form in which a template reads messages."""

from typing import Any

import pytest

from mlx_guarded_llm.engine.prompt.message_format import PLAIN, MessageFormat, message_format
from tests.engine._families import family
from tests.engine._tokenizers import base, byte_level, caller, plain

ALL = frozenset({"user", "system", "assistant", "tool"})


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("chatml", ()),
        ("gemma-1", ()),
        ("llama-3.2-vision", ()),
        ("qwen-2.5", ()),
        ("kimi-vl", ALL - {"tool"}),
        ("mistral-small-3.1", {"system"}),
        ("llama-guard-3", {"user", "assistant"}),
    ],
)
def test_parts_for_the_roles_that_want_them(name: str, parts: Any) -> None:
    assert message_format(family(name).tokenizer).parts == frozenset(parts)


def test_arguments_as_text() -> None:
    assert message_format(family("deepseek-v3").tokenizer) == MessageFormat(json_arguments=True)
    assert not message_format(family("qwen-2.5").tokenizer).json_arguments
    printed = byte_level(
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.arguments }}{% endfor %}{% endfor %}"
    )
    assert message_format(printed).json_arguments  # else Python's True and quotes


def test_plain_where_nothing_else_helps() -> None:
    assert message_format(plain()) == message_format(caller("mistral")) == PLAIN
    assert message_format(byte_level("{{ 1 / 0 }}")) == PLAIN
    assert message_format(base()) == PLAIN


def test_writing_does_not_change_what_it_is_given() -> None:
    call = {"function": {"name": "f", "arguments": {"a": "é"}}}
    message = {"role": "assistant", "content": "a", "tool_calls": [call]}
    written = MessageFormat(ALL, json_arguments=True).write([message])[0]
    assert written["content"] == [{"type": "text", "text": "a"}]
    assert written["tool_calls"][0]["function"]["arguments"] == '{"a": "é"}'
    assert message["content"] == "a"
    assert call["function"]["arguments"] == {"a": "é"}
