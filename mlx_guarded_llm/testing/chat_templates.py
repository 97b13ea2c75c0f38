"""ChatML as Qwen writes it, with optional thinking and tools."""

from __future__ import annotations

from typing import Literal

Thinking = bool | Literal["open"]

_TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\nYou may call these functions:\\n' }}
    {%- for tool in tools %}{{- tool | tojson }}{{- '\\n' }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
"""

# mlx-lm knows a template of JSON tool calls by "<tool_call>" and "tool_call.name".
_CALLS = """\
    {%- for item in message.tool_calls or [] %}
        {%- set tool_call = item.function if item.function else item %}
        {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
        {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
        {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
"""

_MESSAGES = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
CALLS    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
THINKING{%- endif %}
"""

# As in Qwen 3: the model opens its thinking itself; without thinking the prompt closes it.
_CLOSED = """\
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
"""

# As in DeepSeek R1: the prompt opens the thinking, so the answer begins inside it.
_OPEN = """\
    {{- '<think>\\n' }}
"""


def chatml(*, thinking: Thinking = False, tools: bool = False) -> str:
    """A ChatML template.

    Args:
        thinking: True as in Qwen 3; "open" as in DeepSeek R1, where the generation
            prompt ends with an open `<think>`.
        tools: render tools, calls and results.
    """
    opening = _OPEN if thinking == "open" else _CLOSED if thinking else ""
    messages = _MESSAGES.replace("CALLS", _CALLS if tools else "").replace("THINKING", opening)
    return (_TOOLS if tools else "") + messages


def choose_template(
    chat_template: bool | str | None, *, thinking: Thinking, tools: bool
) -> str | None:
    """The template: True is ChatML, a text is used as it is, None is no template."""
    if isinstance(chat_template, str):
        return chat_template
    return chatml(thinking=thinking, tools=tools) if chat_template else None
