"""How models write calls, written anew for tests: a writer for each format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from mlx_guarded_llm.engine.output.calls.offered import Offered
from mlx_guarded_llm.engine.output.markup import markup
from mlx_guarded_llm.engine.output.structure import ANSWER, REASONING, Part, Structure
from mlx_guarded_llm.engine.prompt.prompt import Prompt, Segment
from mlx_guarded_llm.engine.prompt.tool_format import OURS, native_format
from mlx_guarded_llm.results import FinishReason

Call = tuple[str, dict[str, Any]]

THINK = ("<think>", "</think>")
_DEEPSEEK = "{{ tools }}<\uff5ctool▁calls▁begin\uff5c>"
_HARMONY = "{{ tools }}<|start|>{{ role }}<|channel|><|message|>"


@dataclass(frozen=True)
class Format:
    """A format of calls.

    Attributes:
        parser: mlx-lm's name for it; another for one that it does not know, "" for ours.
        write: the text of some calls.
        unclear: marks which, inside of a string, cannot be told from the format's own.
        template: it says which format the model knows, if mlx-lm does not.
    """

    parser: str
    write: Callable[[Sequence[Call]], str]
    unclear: tuple[str, ...] = ()
    template: str = ""

    def __str__(self) -> str:  # a test's id, the same in every process
        return self.parser or "ours"


def _each(call: Callable[[str, dict[str, Any]], str], between: str = "") -> Any:
    return lambda calls: between.join(call(name, arguments) for name, arguments in calls)


def _within(start: str, end: str, call: Callable[[str, dict[str, Any]], str]) -> Any:
    return lambda calls: start + _each(call)(calls) + end


def _hermes(name: str, arguments: dict[str, Any]) -> str:
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def _listed(calls: Sequence[Call]) -> str:
    body = json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls])
    return f"[TOOL_CALLS]{body}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tagged(head: str, item: str, tail: str) -> Callable[[str, dict[str, Any]], str]:
    def write(name: str, arguments: dict[str, Any]) -> str:
        items = (item.format(key=key, text=_plain(value)) for key, value in arguments.items())
        return head.format(name=name) + "".join(items) + tail

    return write


def _kimi(calls: Sequence[Call]) -> str:
    bodies = "".join(
        f"<|tool_call_begin|>functions.{name}:{i}<|tool_call_argument_begin|>"
        f"{json.dumps(arguments)}<|tool_call_end|>"
        for i, (name, arguments) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{bodies}<|tool_calls_section_end|>"


def _xtml(name: str, arguments: dict[str, Any]) -> str:
    kinds = {str: "string", bool: "boolean", list: "array", dict: "object", type(None): "null"}
    items = (
        f'<|open|>argument key="{key}" type="{kinds.get(type(value), "number")}"<|sep|>'
        f"{_plain(value)}<|close|>argument<|sep|>"
        for key, value in arguments.items()
    )
    return f'<|open|>call tool="{name}" index="1"<|sep|>{"".join(items)}<|close|>call<|sep|>'


def _python(calls: Sequence[Call]) -> str:
    written = (
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        for name, arguments in calls
    )
    return f"<|tool_call_start|>[{', '.join(written)}]<|tool_call_end|>"


def _gemma(start: str, end: str, quote: str) -> Callable[[Sequence[Call]], str]:
    def value(item: Any) -> str:
        if isinstance(item, str):
            return f"{quote}{item}{quote}"
        if isinstance(item, dict):
            return "{" + ",".join(f"{key}:{value(inner)}" for key, inner in item.items()) + "}"
        if isinstance(item, list):
            return "[" + ",".join(map(value, item)) + "]"
        return json.dumps(item)

    def write(calls: Sequence[Call]) -> str:
        return "".join(f"{start}call:{name}{value(arguments)}{end}" for name, arguments in calls)

    return write


def _message(name: str, arguments: dict[str, Any]) -> str:
    header = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    return f"{header}{json.dumps(arguments)}<|call|>"


_CALL_BEGIN, _CALL_END = "<\uff5ctool▁call▁begin\uff5c>", "<\uff5ctool▁call▁end\uff5c>"
_SEPARATOR = "<\uff5ctool▁sep\uff5c>"


def _deepseek_v3(name: str, arguments: dict[str, Any]) -> str:
    body = f"```json\n{json.dumps(arguments, ensure_ascii=False)}\n```"
    return f"{_CALL_BEGIN}function{_SEPARATOR}{name}\n{body}{_CALL_END}"


def _deepseek_v31(name: str, arguments: dict[str, Any]) -> str:
    return f"{_CALL_BEGIN}{name}{_SEPARATOR}{json.dumps(arguments)}{_CALL_END}"


def _dsml(name: str, arguments: dict[str, Any]) -> str:
    items = (
        f'<\uff5cDSML\uff5cparameter name="{key}" string="{str(isinstance(value, str)).lower()}">'
        f"{_plain(value)}</\uff5cDSML\uff5cparameter>\n"
        for key, value in arguments.items()
    )
    return f'<\uff5cDSML\uff5cinvoke name="{name}">\n{"".join(items)}</\uff5cDSML\uff5cinvoke>\n'


_GLM = _tagged(
    "<tool_call>{name}\n",
    "<arg_key>{key}</arg_key>\n<arg_value>{text}</arg_value>\n",
    "</tool_call>",
)
_LONGCAT = _tagged(
    "<longcat_tool_call>{name}\n",
    "<longcat_arg_key>{key}</longcat_arg_key>\n<longcat_arg_value>{text}</longcat_arg_value>\n",
    "</longcat_tool_call>",
)
_QWEN = _tagged("<function={name}>\n", "<parameter={key}>\n{text}\n</parameter>\n", "</function>\n")
_MINIMAX = _tagged(
    '<invoke name="{name}">\n', '<parameter name="{key}">{text}</parameter>\n', "</invoke>\n"
)
_MINICPM = _tagged('<function name="{name}">', '<param name="{key}">{text}</param>', "</function>")
_ATEM = _tagged(
    '<atem:invoke name="{name}">',
    '<atem:parameter name="{key}">{text}</atem:parameter>',
    "</atem:invoke>",
)

FORMATS = {
    "ours": Format("", _each(_hermes, "\n")),
    "hermes": Format("json_tools", _each(_hermes, "\n")),
    "mistral": Format(
        "mistral",
        _each(lambda name, a: f"[TOOL_CALLS]{name}[CALL_ID]0123abcde[ARGS]{json.dumps(a)}"),
    ),
    "mistral v11": Format(
        "mistral", _each(lambda name, a: f"[TOOL_CALLS]{name}[ARGS]{json.dumps(a)}")
    ),
    "mistral list": Format("mistral", _listed),
    "kimi k2": Format("kimi_k2", _kimi),
    "kimi k3": Format(
        "kimi_k3",
        _within("<|open|>tools<|sep|>", "<|close|>tools<|sep|>", _xtml),
        ("<|open|>", "<|close|>"),
    ),
    "qwen3 coder": Format(
        "qwen3_coder",
        _each(lambda name, a: f"<tool_call>\n{_QWEN(name, a)}</tool_call>", "\n"),
        ("<parameter", "</parameter>", "<function", "</function>", "<tool_call>", "</tool_call>"),
    ),
    "qwen3 coder, one tag": Format(
        "qwen3_coder",
        _within("<tool_call>\n", "</tool_call>", _QWEN),
        ("<parameter", "</parameter>", "<function", "</function>", "<tool_call>", "</tool_call>"),
    ),
    "qwen3 coder, bare": Format(
        "qwen3_coder",
        _each(_QWEN),
        ("<parameter", "</parameter>", "<function", "</function>", "<tool_call>", "</tool_call>"),
    ),
    "glm": Format("glm47", _each(_GLM), ("<arg_", "</arg_", "<tool_call>", "</tool_call>")),
    "longcat": Format("longcat", _each(_LONGCAT), ("longcat_",)),
    "minimax": Format(
        "minimax_m2",
        _within("<minimax:tool_call>\n", "</minimax:tool_call>", _MINIMAX),
        ("<parameter", "</parameter>", "<invoke", "</invoke>", "minimax:tool_call>"),
    ),
    "minicpm": Format(
        "minicpm5",
        _each(_MINICPM),
        ("<param", "</param>", "<function", "</function>", "<![CDATA["),
    ),
    "atem": Format(
        "muse_spark",
        _within("<atem:function_calls>", "</atem:function_calls>", _ATEM),
        ("atem:",),
    ),
    "pythonic": Format("pythonic", _python),
    "function gemma": Format(
        "function_gemma",
        _gemma("<start_function_call>", "<end_function_call>", "<escape>"),
        ("<escape>",),
    ),
    "gemma 4": Format("gemma4", _gemma("<|tool_call>", "<tool_call|>", '<|"|>'), ('<|"|>',)),
    "harmony": Format("harmony", _each(_message, "<|start|>assistant"), template=_HARMONY),
    "deepseek v3": Format(
        "deepseek",
        _within("<\uff5ctool▁calls▁begin\uff5c>", "<\uff5ctool▁calls▁end\uff5c>", _deepseek_v3),
        template=_DEEPSEEK,
    ),
    "deepseek v3.1": Format(
        "deepseek",
        _within("<\uff5ctool▁calls▁begin\uff5c>", "<\uff5ctool▁calls▁end\uff5c>", _deepseek_v31),
        template=_DEEPSEEK,
    ),
    "deepseek v3.1, bare": Format("deepseek", _each(_deepseek_v31), template=_DEEPSEEK),
    "deepseek v3.2": Format(
        "dsml",
        _within("<\uff5cDSML\uff5cfunction_calls>\n", "</\uff5cDSML\uff5cfunction_calls>", _dsml),
        ("\uff5cDSML\uff5c",),
        template="{{ tools }}<\uff5cDSML\uff5cfunction_calls>",
    ),
    "seed oss": Format(
        "seed",
        _each(lambda name, a: f"<seed:tool_call>\n{_QWEN(name, a)}</seed:tool_call>", "\n"),
        ("<parameter", "</parameter>", "<function", "</function>", "seed:tool_call>"),
        template="{{ tools }}<seed:tool_call>",
    ),
}

# Texts that are markup somewhere.
MARKS = sorted(
    {
        *(mark for form in FORMATS.values() for mark in form.unclear),
        *THINK,
        "</tool_call>",
        "<tool_call>",
        "</parameter>\n</function>\n</tool_call>",
        "</parameter>\n<parameter=city>\n",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|tool_call_end|>",
        "<\uff5ctool▁call▁end\uff5c><\uff5ctool▁calls▁end\uff5c>",
        "```<\uff5ctool▁call▁end\uff5c>",
        "<|tool_calls_section_end|>",
        "<end_function_call>",
        "<|call|>",
        "<|end|>",
    }
)


class _Asked:
    """What is asked of a tokenizer; as of a real one, facts about it are kept."""

    def __init__(self, **answers: Any) -> None:
        self.__dict__.update(answers)


def tokenizer(form: Format, *, thinking: bool = True) -> Any:
    """What is asked of a tokenizer here, of a model with this format."""
    module: Any = None
    if form.parser and not form.template:
        module = import_module(f"mlx_lm.tool_parsers.{form.parser}")
    has_thinking = thinking and form.parser != "harmony"
    return _Asked(
        chat_template=form.template or "{{ tools }}",
        apply_chat_template=lambda messages, tools, **options: str(tools),
        init_kwargs={"tool_parser_type": form.parser},
        has_tool_calling=module is not None,
        tool_call_start=module and module.tool_call_start,
        tool_call_end=module and module.tool_call_end,
        tool_parser=module and module.parse_tool_call,
        has_thinking=has_thinking,
        think_start=THINK[0] if has_thinking else None,
        think_end=THINK[1] if has_thinking else None,
        think_start_tokens=(1,),
        think_end_tokens=(2,),
        get_vocab=dict,
        response_transitions={},
        structural_markers=(),
    )


def tool(name: str, properties: Mapping[str, Any], **schema: Any) -> dict[str, Any]:
    """A tool as a request has it."""
    parameters = {"type": "object", "properties": dict(properties), **schema}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


class Read:
    """What a structure makes of a text, all of it put together.

    Args:
        form: the format that the model learnt.
        pieces: the text as it comes.
        tools: that are offered.
        reason: why it ends.
        forced: the call is forced.
    """

    def __init__(
        self,
        form: Format,
        pieces: Sequence[str],
        tools: Sequence[Mapping[str, Any]],
        *,
        reason: FinishReason = "stop",
        state: str = ANSWER,
    ) -> None:
        model = _model(form)
        native = native_format(model) if tools else None
        prompt = Prompt(
            (1,),
            (Segment("assistant", 1),),
            tools=tuple(tools),
            tool_format=(native or OURS) if tools else None,
        )
        structure = Structure(markup(model, prompt), state, Offered(tools))
        self.end = prompt.tool_format.end if prompt.tool_format else ""
        self.parts: list[Part] = [part for piece in pieces for part in structure.feed(piece)]
        self.streamed = len(self.parts)
        self.parts += structure.finish(reason)

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if part.state == ANSWER)

    @property
    def reasoning(self) -> str:
        return "".join(part.text for part in self.parts if part.state == REASONING)

    @property
    def calls(self) -> list[Call]:
        return [(call.name, dict(call.arguments)) for part in self.parts for call in part.calls]

    @property
    def invalid(self) -> list[str]:
        return [part.invalid.text for part in self.parts if part.invalid is not None]

    @property
    def all(self) -> Any:
        """Everything that can be told of it."""
        return self.text, self.reasoning, self.calls, self.invalid


_MODELS: dict[str, Any] = {}


def _model(form: Format) -> Any:
    if form.parser not in _MODELS:
        _MODELS[form.parser] = tokenizer(form)
    return _MODELS[form.parser]
