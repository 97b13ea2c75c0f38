"""How a model writes tool calls: in the format it was trained on, or in ours.

There are three kinds:

- native JSON: `{"name": ..., "arguments": ...}` between markers, which the model's own template
  shows (Qwen 2.5 and 3, Hermes, LongCat);
- other native formats: Mistral's, gpt-oss's, DeepSeek's, pythonic, XML and so on. Each has a
  grammar in `calls`; formats that only mlx-lm knows are read by its parser;
- ours: Hermes' format, described in a system message (`tool_prompt`), for templates that do not
  show tools and for formats that nothing here can read.

A grammar of llguidance can only enforce JSON. So if a call is forced on a model of the second
kind, it is written, and read, in our format.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...models.chat import DEEPSEEK_CALLS, DSML_CALLS, SEED_CALLS, call_markers, is_harmony
from ..output.calls import json_forms, tag_forms, value_forms
from ..output.calls.cursor import Cursor
from ..output.calls.offered import Offered
from ..output.calls.reading import Grammar
from ..output.calls.unmarked import unmarked
from .tokenizer_cache import cached_per_tokenizer

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

_QWEN = tag_forms.Tags("<function=", "</function>", "<parameter=", "</parameter>", lines=True)
_MINIMAX = tag_forms.Tags("<invoke name=", "</invoke>", "<parameter name=", "</parameter>")
_MINICPM = tag_forms.Tags("<function name=", "</function>", "<param name=", "</param>", cdata=True)
_DSML = tag_forms.Tags(
    "<\uff5cDSML\uff5cinvoke",
    "</\uff5cDSML\uff5cinvoke>",
    "<\uff5cDSML\uff5cparameter",
    "</\uff5cDSML\uff5cparameter>",
)
_ATEM = tag_forms.Tags("<atem:invoke", "</atem:invoke>", "<atem:parameter", "</atem:parameter>")

# The formats that are read here, by the names that mlx-lm gives them.
_GRAMMARS: dict[str, Grammar] = {
    "function_gemma": value_forms.Gemma("<escape>").read,
    "gemma4": value_forms.Gemma('<|"|>').read,
    "glm47": tag_forms.pairs,
    "json_tools": json_forms.objects,
    "kimi_k2": json_forms.kimi_k2,
    "kimi_k3": tag_forms.xtml,
    "laguna": tag_forms.pairs,
    "longcat": tag_forms.longcat,
    "minicpm5": _MINICPM.read,
    "minimax_m2": _MINIMAX.read,
    "mistral": json_forms.mistral,
    "muse_spark": _ATEM.read,
    "pythonic": value_forms.pythonic,
    "qwen3_coder": _QWEN.read,
}
# What a call begins with if the model leaves out the marker before it.
_BARE = {
    "kimi_k2": json_forms.KIMI_CALL,
    "minicpm5": _MINICPM.function,
    "minimax_m2": _MINIMAX.function,
    "qwen3_coder": _QWEN.function,
}
# The formats that are, or may be, JSON between markers.
_JSON = frozenset({"json_tools", "longcat"})

_PROBE = {
    "type": "function",
    "function": {
        "name": "probe_of_tools",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {}},
    },
}


@dataclass(frozen=True)
class ToolFormat:
    """The markers around a call, and what is between them.

    Attributes:
        start: marker before a call.
        end: marker after it; "" if there is none.
        is_json: between them is an object with name and arguments.
        native: it is the format of the model.
        grammar: reads the text after `start`, including `end`.
        bare: other texts that begin a call and belong to it.
        breaks: what, besides `end`, ends a text that was meant as a call but is not one; if empty,
            the marker before a call.
        unmarked: `start` belongs to the call, and most texts that begin with it are no calls.
    """

    start: str
    end: str
    is_json: bool
    native: bool
    grammar: Grammar = json_forms.objects
    bare: tuple[str, ...] = ()
    breaks: tuple[str, ...] = ()
    unmarked: bool = False

    @property
    def starts(self) -> tuple[str, ...]:
        """Everything that begins a call."""
        return tuple(dict.fromkeys((self.start, *self.bare)))


OURS = ToolFormat("<tool_call>", "</tool_call>", is_json=True, native=False)


def _unmarked(start: str) -> ToolFormat:
    return ToolFormat(
        start,
        "",
        is_json=False,
        native=False,
        grammar=unmarked,
        bare=(start,),
        breaks=("\0",),
        unmarked=True,
    )


# Calls without markers: JSON or Python at the beginning of the answer.
UNMARKED = tuple(_unmarked(start) for start in ("{", "[", "```"))

# Formats that mlx-lm does not know, but templates that show tools do.
_MORE = (
    ToolFormat(
        DEEPSEEK_CALLS,
        "<\uff5ctool▁calls▁end\uff5c>",
        is_json=False,
        native=True,
        grammar=json_forms.deepseek,
        bare=(json_forms.DEEPSEEK_CALL,),
    ),
    *(
        ToolFormat(
            start,
            f"</{start[1:]}",
            is_json=False,
            native=True,
            grammar=_DSML.read,
        )
        for start in DSML_CALLS  # DeepSeek V3.2, V4
    ),
    ToolFormat(
        SEED_CALLS,
        "</seed:tool_call>",
        is_json=False,
        native=True,
        grammar=_QWEN.read,
        bare=(_QWEN.function,),
    ),
)

# Markers of further formats that a model may have been trained on, followed by JSON or Python. A
# template mentions those that its model knows.
_OTHERS = (
    ("<|python_tag|>", ""),
    ("<|python_start|>", "<|python_end|>"),
    ("<|tool_call|>", "<|/tool_call|>"),
    ("<TOOLCALL>", "</TOOLCALL>"),
    ("<tool_calls>", "</tool_calls>"),
    ("<|START_ACTION|>", "<|END_ACTION|>"),
    ("<|action_start|><|plugin|>", "<|action_end|>"),
    ("functools[", ""),
)

# A message of gpt-oss to a function: `to=functions.name`, the rest of its header, arguments.
HARMONY = ToolFormat(
    " to=",
    "<|call|>",
    is_json=False,
    native=True,
    grammar=json_forms.harmony,
    breaks=("<|end|>", "<|return|>", "<|start|>"),
)


def native_format(tokenizer: TokenizerWrapper) -> ToolFormat | None:
    """The format of the model; None if its template shows no tools or its calls cannot be read."""
    own = HARMONY if writes_harmony(tokenizer) else None
    if own is None and not tokenizer.has_tool_calling:
        own = next(iter(_named(tokenizer)), None)
    if not (own or tokenizer.has_tool_calling) or not _shows_tools(tokenizer):
        return None
    if own is not None:
        return own
    name = tokenizer.init_kwargs.get("tool_parser_type")
    return ToolFormat(
        tokenizer.tool_call_start,
        tokenizer.tool_call_end,
        is_json=name in _JSON,
        native=True,
        grammar=_GRAMMARS.get(str(name)) or partial(_by_mlx_lm, tokenizer.tool_parser),
        bare=(_BARE[name],) if name in _BARE else (),
    )


def other_formats(tokenizer: TokenizerWrapper) -> list[ToolFormat]:
    """Formats that the model may know besides the one that it is asked to use."""
    template = str(tokenizer.chat_template)
    others = [
        ToolFormat(
            start.removesuffix("["), end, is_json=False, native=False, grammar=value_forms.others
        )
        for start, end in _OTHERS
        if start in template
    ]
    return others + [replace(form, native=False) for form in _named(tokenizer)]


def _named(tokenizer: TokenizerWrapper) -> list[ToolFormat]:
    """The formats that the template mentions and mlx-lm does not know."""
    named = call_markers(tokenizer.chat_template)
    return [form for form in _MORE if form.start in named]


def writes_harmony(tokenizer: TokenizerWrapper) -> bool:
    """The model's answers are messages in channels, as gpt-oss writes them."""
    return is_harmony(tokenizer.chat_template)


def _by_mlx_lm(
    parser: Any, cursor: Cursor, offered: Offered, start: str, end: str
) -> Generator[None, None, json_forms.Calls]:
    """Reads the text up to the end marker with mlx-lm's parser."""
    cursor.begun = True
    text = (yield from cursor.until(end))[0] if end else (yield from cursor.until_end())
    return json_forms.called(offered.parsed(parser, text), offered)


@cached_per_tokenizer
def _shows_tools(tokenizer: TokenizerWrapper) -> bool:
    """Whether a tool changes the output of the model's template."""
    messages = [{"role": "user", "content": "Hello"}]

    def render(tools: list[Any] | None) -> str:
        options = {"tokenize": False, "add_generation_prompt": True}
        return str(tokenizer.apply_chat_template(messages, tools=tools, **options))

    try:
        return render([_PROBE]) != render(None)
    except Exception:  # templates run arbitrary expressions
        return False
