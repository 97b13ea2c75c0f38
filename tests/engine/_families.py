"""Chat templates with the traits of the model families that are used most.

None is the family's own: each says in a few lines what is particular about it (where the
system message goes, whether texts are trimmed or come in parts, who is refused, what is
done with tools, calls, results and thinking), since that is what loses a text.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.engine._tokenizers import byte_level

_REFUSE_ORDER = """\
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}"""
_CONTROL = re.compile(r"<[|\uff5c][^\s'\"<>]+?[|\uff5c]>|</?[a-z_:]+>|\[/?[A-Z_]+\]")


def _turns(
    before: str,
    after: str = "",
    *,
    start: str = "",
    begin: str | None = None,
    text: str = "m.content",
    roles: str = "{}",
    strict: bool = False,
    tools: str = "",
    more: str = "",
) -> str:
    """A template that writes each message in the same way.

    Args:
        before: what stands before a text; ROLE is its role.
        after: what stands after it.
        start: what the prompt starts with.
        begin: what begins the assistant's turn; None is `before` for that role.
        text: the text of message m.
        roles: other names of roles, as a mapping of Jinja.
        strict: users and assistants must take turns, and nobody else speaks.
        tools: written first when there are any.
        more: written between the text and what stands after it.
    """
    names = f"{roles}.get(m.role, m.role)"
    first = before.replace("ROLE", "' + role + '")
    begin = before.replace("ROLE", "assistant") if begin is None else begin
    return (
        f"{{{{- '{start}' }}}}"
        + (f"{{%- if tools %}}{tools}{{%- endif %}}" if tools else "")
        + "{%- for m in messages %}"
        + (_REFUSE_ORDER if strict else "")
        + f"{{%- set role = {names} %}}{{{{- '{first}' }}}}{{{{- {text} }}}}{more}"
        + f"{{{{- '{after}' }}}}{{%- endfor %}}"
        + f"{{%- if add_generation_prompt %}}{{{{- '{begin}' }}}}{{%- endif %}}"
    )


_PARTS = (
    "{%- if m.content is string %}{{- m.content }}{%- else %}{%- for p in m.content %}"
    "{%- if p.type == 'text' %}{{- p.text }}{%- endif %}{%- endfor %}{%- endif %}"
)
_ONLY_PARTS = (
    "{%- for p in m.content %}{%- if p.type == 'text' %}{{- p.text }}{%- endif %}{%- endfor %}"
)
_JSON_CALLS = (
    "{%- for c in m.tool_calls or [] %}{%- set tool_call = c.function or c %}"
    '{{- \'\\n<tool_call>\\n{"name": "\' + tool_call.name + \'", "arguments": \' }}'
    "{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}"
)
_TOOLS = (
    "{{- '<|im_start|>system\\n<tools>\\n' }}{%- for t in tools %}{{- t | tojson }}{{- '\\n' }}"
    "{%- endfor %}{{- '</tools><|im_end|>\\n' }}"
)
_IM: dict[str, Any] = {"before": "<|im_start|>ROLE\\n", "after": "<|im_end|>\\n"}
_SKIP_THINKING = (
    "(m.content.split('</think>')[-1].lstrip('\\n') if m.role == 'assistant' else m.content)"
)


def _instructions(system: str, *, call: bool = False, sep: str = " ", parts: bool = False) -> str:
    """Of the [INST] kind: the system message goes into a user's turn, or has one of its own."""
    content = "m.content | trim"
    said = f"{{%- set said %}}{_PARTS}{{%- endset %}}" if parts else ""
    if parts:
        content = "said"
    tools = (
        "{%- if tools %}{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}"
        "{%- endif %}"
    )
    calls = (
        "{%- elif m.tool_calls %}{{- '[TOOL_CALLS] [' }}{%- for c in m.tool_calls %}"
        "{{- c.function | tojson }}{{- ', ' if not loop.last }}{%- endfor %}{{- ']</s>' }}"
        "{%- elif m.role == 'tool' %}"
        "{{- '[TOOL_RESULTS] {\"content\": ' + (m.content | tojson) + '}[/TOOL_RESULTS]' }}"
    )
    return (
        "{{- '<s>' }}{%- if messages[0].role == 'system' %}{%- set system = "
        + ("messages[0].content[0].text" if parts else "messages[0].content")
        + " %}{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}"
        + "{%- set ns = namespace(turn=0) %}{%- for m in rest %}"
        + "{%- if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
        + "{%- if (m.role == 'user') != (ns.turn % 2 == 0) %}"
        + "{{- raise_exception('roles must alternate after the system message') }}{%- endif %}"
        + f"{{%- set ns.turn = ns.turn + 1 %}}{{%- endif %}}{said}"
        + "{%- if m.role == 'user' %}"
        + (f"{{%- if loop.last %}}{tools}{{%- endif %}}" if call else "")
        + f"{{{{- '[INST]{sep}' }}}}{system}{{{{- {content} }}}}{{{{- '{sep}[/INST]' }}}}"
        + (calls if call else "")
        + f"{{%- elif m.role == 'assistant' %}}{{{{- ' ' }}}}{{{{- {content} }}}}{{{{- '</s>' }}}}"
        + "{%- else %}{{- raise_exception('only user and assistant roles') }}"
        + "{%- endif %}{%- endfor %}"
    )


_SYS = (
    "{%- if loop.first and system is defined %}{{- BEFORE }}{{- system }}{{- AFTER }}{%- endif %}"
)
_LLAMA_3: dict[str, Any] = {
    "before": "<|start_header_id|>ROLE<|end_header_id|>\\n\\n",
    "after": "<|eot_id|>",
    "start": "<|begin_of_text|>",
    "text": "m.content | trim",
}
_GEMMA = (
    "{{- '<bos>' }}{%- if messages[0].role == 'system' %}SYSTEM{%- else %}"
    "{%- set rest = messages %}"
    "{%- endif %}{%- for m in rest %}" + _REFUSE_ORDER + "{%- set role = 'model' if "
    "m.role == 'assistant' else m.role %}{{- '<start_of_turn>' + role + '\\n' }}"
    "{%- if loop.first and lead is defined %}{{- lead + '\\n\\n' }}{%- endif %}TEXT"
    "{{- '<end_of_turn>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"
)
_GEMMA_TEXT = (
    "{%- if m.content is string %}{{- m.content | trim }}{%- else %}{%- for p in m.content %}"
    "{{- p.text | trim }}{%- endfor %}{%- endif %}"
)
_DEEPSEEK = (
    "{%- set ns = namespace(system='') %}{%- for m in messages if m.role == 'system' %}"
    "{%- set ns.system = ns.system + ('\\n\\n' if ns.system else '') + m.content %}{%- endfor %}"
    "{{- '<\uff5cbegin▁of▁sentence\uff5c>' + ns.system }}{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{- '<\uff5cUser\uff5c>' + m.content }}"
    "{%- elif m.role == 'assistant' and m.tool_calls %}{{- '<\uff5cAssistant\uff5c>' }}"
    "{%- for c in m.tool_calls %}{{- '<\uff5ctool▁call▁begin\uff5c>' + c.function.name "
    "+ '\\n```json\\n' "
    "+ c.function.arguments + '\\n```<\uff5ctool▁call▁end\uff5c>' }}{%- endfor %}"
    "{%- elif m.role == 'assistant' %}{{- '<\uff5cAssistant\uff5c>' }}TEXT"
    "{{- '<\uff5cend▁of▁sentence\uff5c>' }}"
    "{%- elif m.role == 'tool' %}{{- '<\uff5ctool▁output▁begin\uff5c>' + m.content }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<\uff5cAssistant\uff5c>BEGIN' }}{%- endif %}"
)
_COHERE = (
    "{{- '<BOS_TOKEN>' }}{%- if messages[0].role == 'system' %}{%- set rest = messages[1:] %}"
    "{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + messages[0].content + "
    "'<|END_OF_TURN_TOKEN|>' }}{%- else %}{%- set rest = messages %}{%- endif %}"
    "{%- for m in rest %}" + _REFUSE_ORDER + "{%- set role = 'USER' if m.role == 'user' else "
    "'CHATBOT' %}{{- '<|START_OF_TURN_TOKEN|><|' + role + '_TOKEN|>' + (m.content | trim) + "
    "'<|END_OF_TURN_TOKEN|>' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif %}"
)
_HARMONY = (
    "{{- '<|start|>system<|message|>You are a model.<|end|>' }}{%- if messages[0].role in "
    "['system', 'developer'] %}{%- set rest = messages[1:] %}{{- '<|start|>developer<|message|># "
    "Instructions\\n\\n' + messages[0].content + '<|end|>' }}{%- else %}{%- set rest = messages %}"
    "{%- endif %}{%- for m in rest %}{%- if m.role == 'assistant' %}{%- if 'tool_calls' in m %}"
    "{%- if m.content %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.content + "
    "'<|end|>' }}{%- endif %}{{- '<|start|>assistant to=functions.' + "
    "m.tool_calls[0].function.name + '<|channel|>commentary json<|message|>' }}"
    "{{- m.tool_calls[0].function.arguments | tojson }}{{- '<|call|>' }}{%- else %}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{%- endif %}"
    "{%- elif m.role == 'tool' %}{{- '<|start|>functions to=assistant<|channel|>commentary"
    "<|message|>' + (m.content | tojson) + '<|end|>' }}{%- else %}{{- '<|start|>' + m.role + "
    "'<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
_QWEN_3 = (
    "{%- if tools %}" + _TOOLS + "{%- endif %}{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}{{- '<|im_start|>assistant\\n' }}{%- set said = m.content %}"
    "{%- if '</think>' in m.content %}"
    "{%- set said = m.content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{%- if loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{{- said }}"
    + _JSON_CALLS
    + "{{- '<|im_end|>\\n' }}{%- elif m.role == 'tool' %}{%- if loop.first or "
    "messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}"
    "{%- endif %}{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
_QWEN_CODER = (
    "{#- <tool_call>\n<function= -#}{%- if tools %}{{- '<|im_start|>system\\n' }}"
    "{%- for t in tools %}{{- '<function>\\n<name>' + t.function.name + '</name>\\n<description>' "
    "+ (t.function.description | default('') | trim) + '</description>\\n</function>' }}"
    "{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\\n' + (m.content | trim) }}{%- for c in m.tool_calls or [] %}"
    "{{- '\\n<tool_call>\\n<function=' + c.function.name + '>' }}"
    "{%- for k, v in c.function.arguments | items %}{{- '\\n<parameter=' + k + '>\\n' }}"
    "{{- v | tojson if v is mapping or (v is iterable and v is not string) else v | string }}"
    "{{- '\\n</parameter>' }}{%- endfor %}{{- '\\n</function>\\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_LLAMA_3_TOOLS = (
    "{{- '<|begin_of_text|>' }}{%- for m in messages %}{%- if m.tool_calls %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n<tool_call>' }}{%- set tool_call = "
    'm.tool_calls[0].function %}{{- \'{"name": "\' + tool_call.name + \'", "arguments": \' }}'
    "{{- tool_call.arguments | tojson }}{{- '}</tool_call><|eot_id|>' }}{%- else %}"
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
    "{%- if tools and loop.first %}{%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}"
    "{%- endif %}{{- m.content | trim }}{{- '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
_SMOL_3 = (
    "{{- '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}"
    "{%- set rest = messages[1:] %}{{- messages[0].content.replace('/no_think', '')"
    ".replace('/think', '').rstrip() }}{%- else %}{%- set rest = messages %}{%- endif %}"
    "{{- '<|im_end|>\\n' }}{%- for m in rest %}{{- '<|im_start|>' + m.role + '\\n' }}{{- "
    + _SKIP_THINKING
    + " }}{{- '<|im_end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}{%- if '/no_think' in messages[0].content %}"
    "{{- '<think>\\n\\n</think>\\n' }}{%- endif %}{%- endif %}"
)
_VICUNA = (
    "{%- if messages[0].role == 'system' %}{%- set rest = messages[1:] %}"
    "{{- messages[0].content + ' ' }}{%- else %}{%- set rest = messages %}{%- endif %}"
    "{%- for m in rest %}"
    + _REFUSE_ORDER
    + "{%- if m.role == 'user' %}{{- 'USER: ' + m.content + ' ' }}{%- else %}"
    "{{- 'ASSISTANT: ' + m.content + '</s>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"
)
_GUARD = (
    "{{- '<|begin_of_text|>Task: check for unsafe content.\\n\\n' }}{%- for m in messages %}"
    "{%- if m.role in ['user', 'assistant'] %}{{- m.role + ': ' }}"
    + _ONLY_PARTS
    + "{{- '\\n\\n' }}"
    "{%- endif %}{%- endfor %}{{- '<|eot_id|>' }}"
)
_EXAONE_4 = (
    "{%- for m in messages %}{{- '[|' + m.role + '|]\\n' }}{%- if m.role == 'tool' %}"
    "{{- '<tool_result>' }}{{- m.content | tojson }}{{- '</tool_result>' }}{%- else %}"
    "{{- m.content | trim }}{%- endif %}{{- '[|endofturn|]\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '[|assistant|]\\n' }}{%- endif %}"
)

FAMILIES: dict[str, str] = {
    "alpaca": _turns(
        "### ROLE:\\n", "\\n\\n", roles="{'user': 'Instruction', 'assistant': 'Response'}"
    ),
    "aya": _COHERE,
    "baichuan": _turns(
        "<ROLE>",
        "",
        begin="<reserved_107>",
        roles="{'user': 'reserved_106', 'assistant': 'reserved_107'}",
    ),
    "chatml": _turns(**_IM),
    "command-r": _COHERE,
    "deepseek-llm": _turns("ROLE: ", "\\n\\n", start="<|begin_of_sentence|>"),
    "deepseek-r1": _DEEPSEEK.replace("TEXT", "{{- m.content.split('</think>')[-1] }}").replace(
        "BEGIN", "<think>\\n"
    ),
    "deepseek-v3": _DEEPSEEK.replace("TEXT", "{{- m.content }}").replace("BEGIN", ""),
    "ernie": _turns(
        "ROLE: ", "<|end_of_sentence|>", start="<|begin_of_sentence|>", text="m.content.strip()"
    ),
    "exaone-3": _turns("[|ROLE|]", "[|endofturn|]\\n"),
    "exaone-4": _EXAONE_4,
    "falcon": _turns("ROLE: ", "\\n\\n", text="m.content.strip() | replace('\\n\\n', '\\n')"),
    "gemma-1": _GEMMA.replace(
        "SYSTEM", "{{- raise_exception('System role not supported') }}"
    ).replace("TEXT", "{{- m.content | trim }}"),
    "gemma-3": _GEMMA.replace(
        "SYSTEM",
        "{%- set rest = messages[1:] %}{%- if messages[0].content is string %}"
        "{%- set lead = messages[0].content %}{%- else %}"
        "{%- set lead = messages[0].content[0].text %}{%- endif %}",
    ).replace("TEXT", _GEMMA_TEXT),
    "glm-4": _turns("<|ROLE|>\\n", start="[gMASK]<sop>", roles="{'tool': 'observation'}"),
    "glm-4.5": _turns(
        "<|ROLE|>\\n",
        start="[gMASK]<sop>",
        roles="{'tool': 'observation'}",
        text=f"{_SKIP_THINKING} + ('/nothink' if m.role == 'user' and enable_thinking is defined "
        "and not enable_thinking and not m.content.endswith('/nothink') else '')",
        tools="{#- <arg_key> -#}{{- '<|system|>\\n<tools>' + (tools | tojson) + '</tools>' }}",
        more="{%- for c in m.tool_calls or [] %}{{- '\\n<tool_call>' + c.function.name }}"
        "{%- for k, v in c.function.arguments | items %}{{- '\\n<arg_key>' + k + '</arg_key>\\n"
        "<arg_value>' }}{{- v if v is string else v | tojson }}{{- '</arg_value>' }}{%- endfor %}"
        "{{- '\\n</tool_call>' }}{%- endfor %}",
    ),
    "gpt-oss": _HARMONY,
    "granite-3": _turns(
        "<|start_of_role|>ROLE<|end_of_role|>",
        "<|end_of_text|>\\n",
        roles="{'tool': 'tool_response'}",
    ),
    "hermes-3": _turns(**_IM, tools=_TOOLS, more=_JSON_CALLS),
    "hunyuan": _turns("<|ROLE|>", "<|eos|>", start="<|startoftext|>"),
    "internlm-2": _turns(**_IM, start="<s>"),
    "jamba": _turns("<|bom|><|ROLE|> ", "<|eom|>", start="<|startoftext|>"),
    "kimi-k2": _turns(
        "<|im_ROLE|>ROLE<|im_middle|>", "<|im_end|>", begin="<|im_assistant|>assistant<|im_middle|>"
    ),
    "kimi-vl": _turns("<|im_ROLE|>ROLE<|im_middle|>", "<|im_end|>", text="''", more=_ONLY_PARTS),
    "lfm-2": _turns(**_IM, start="<|startoftext|>"),
    "llama-2": _instructions(
        _SYS.replace("BEFORE", "'<<SYS>>\\n'").replace("AFTER", "'\\n<</SYS>>\\n\\n'")
    ),
    "llama-3": _turns(**_LLAMA_3),
    "llama-3.1-tools": _LLAMA_3_TOOLS,
    "llama-3.2-vision": _turns(**{**_LLAMA_3, "text": "''", "more": _PARTS}),
    "llama-4": _turns(
        "<|header_start|>ROLE<|header_end|>\\n\\n", "<|eot|>", text="''", more=_PARTS
    ),
    "llama-guard-3": _GUARD,
    "minimax-m1": _turns(
        "<beginning_of_sentence>ROLE name=x\\n", "<end_of_sentence>\\n", text="''", more=_ONLY_PARTS
    ),
    "mistral-1": _instructions(_SYS.replace("BEFORE", "''").replace("AFTER", "'\\n\\n'")),
    "mistral-3": _instructions(
        _SYS.replace("loop.first", "loop.last")
        .replace("BEFORE", "''")
        .replace("AFTER", "'\\n\\n'"),
        call=True,
    ),
    "mistral-7": _instructions(
        _SYS.replace("BEFORE", "''").replace("AFTER", "'\\n'"), call=True, sep=""
    ),
    "mistral-small-3.1": _instructions(
        _SYS.replace("BEFORE", "''").replace("AFTER", "'\\n\\n'"), sep="", parts=True
    ),
    "nemotron": _turns(
        "<extra_id_1>ROLE\\n", "\\n", roles="{'user': 'User', 'assistant': 'Assistant'}"
    ),
    "nemotron-nano-2": _SMOL_3,
    "olmo-2": _turns("<|ROLE|>\\n", "\\n", start="<|endoftext|>"),
    "openchat": _turns(
        "GPT4 Correct ROLE: ",
        "<|end_of_turn|>",
        start="<s>",
        begin="GPT4 Correct Assistant:",
        roles="{'user': 'User', 'assistant': 'Assistant'}",
    ),
    "orca": _turns("### ROLE:\\n", "\\n\\n", begin="### Assistant:\\n"),
    "phi-3": _turns("<|ROLE|>\\n", "<|end|>\\n"),
    "phi-4": _turns("<|im_start|>ROLE<|im_sep|>", "<|im_end|>"),
    "pixtral": _turns(
        "[INST]", "[/INST]", start="<s>", begin="", text="''", more=_PARTS, strict=True
    ),
    "qwen-1.5": (
        "{%- if messages[0].role != 'system' %}"
        "{{- '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}{%- endif %}"
    )
    + _turns(**_IM),
    "qwen-2.5": _turns(**_IM, tools=_TOOLS, more=_JSON_CALLS),
    "qwen-2-vl": _turns(**_IM, text="''", more=_PARTS),
    "qwen-3": _QWEN_3,
    "qwen-3-coder": _QWEN_CODER,
    "seed-oss": _turns("<seed:bos>ROLE\\n", "<seed:eos>", text="m.content | trim"),
    "smollm-2": _turns(**_IM),
    "smollm-3": _SMOL_3,
    "solar": _turns("### ROLE:\\n", "\\n\\n", text="m.content | trim"),
    "stablelm-2": _turns(**_IM),
    "starling": _turns("GPT4 Correct ROLE: ", "<|end_of_turn|>", start="<s>"),
    "tulu-3": _turns("<|ROLE|>\\n", "\\n"),
    "vicuna": _VICUNA,
    "yi": _turns(**_IM),
    "zephyr": _turns("<|ROLE|>\\n", "</s>\\n", strict=False),
    # Careless ones, as they are found in conversions and fine-tunings.
    "drops-system": "{%- for m in messages if m.role != 'system' %}{{- '<|' + m.role + '|>' }}"
    "{{- m.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}",
    "drops-answers": "{%- for m in messages if m.role != 'assistant' %}{{- '<|' + m.role + '|>' }}"
    "{{- m.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}",
    "drops-results": "{%- for m in messages %}{%- if m.role in ['system', 'user', 'assistant'] %}"
    "{{- '<|' + m.role + '|>' + m.content }}{%- endif %}{%- endfor %}",
    "last-message-only": "{{- '<|user|>' + messages[-1].content + '<|assistant|>' }}",
    "cuts-long-texts": "{%- for m in messages %}{{- '<|' + m.role + '|>' + m.content[:40] }}"
    "{%- endfor %}",
    "parts-strictly": _turns(**_IM, text="m.content[0]['text'] + ''"),
    "splits-everybody": _turns(**_IM, text="m.content.split('</think>')[-1]"),
}


@dataclass(frozen=True)
class Family:
    """A template with a tokenizer that has its markup as tokens."""

    name: str
    tokenizer: Any
    control: tuple[str, ...]


@cache
def family(name: str) -> Family:
    template = FAMILIES[name]
    found = set(_CONTROL.findall(template.replace("ROLE", "user")))
    if "' + role + '" in template:
        for role in ("system", "user", "assistant", "tool"):
            found |= set(_CONTROL.findall(template.replace("' + role + '", role)))
    control = tuple(sorted(found - {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}))
    return Family(name, byte_level(template, added=control), (*control, "<|im_end|>"))
