"""How a model writes tool calls: the format it learnt, or ours where it learnt none.

Three kinds are told apart:

- native JSON: `{"name": ..., "arguments": ...}` between markers, shown by the model's own
  template and read by mlx-lm's parser (Qwen 2.5 and 3, Hermes, LongCat);
- native other: Mistral's, pythonic, XML and so on; only mlx-lm's parser knows them;
- ours: Hermes' format, described in a system message (`tool_prompt`), for templates that
  do not show tools and calls that mlx-lm cannot read.

Only JSON can be held to a grammar. So a call that is forced on a model of the second kind
is written, and read, in our format.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

Parser = Callable[[str, list[Any]], Any]

# mlx-lm's parsers of formats that are, or may be, JSON between markers.
_JSON_PARSERS = frozenset({"json_tools", "longcat"})

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
    """The markers around a call and what stands between them.

    Attributes:
        start: marker before a call.
        end: marker after it; "" when a call ends where the answer does.
        is_json: an object with name and arguments stands between them.
        native: it is the model's own, which mlx-lm's parser reads.
    """

    start: str
    end: str
    is_json: bool
    native: bool

    def parser(self, tokenizer: TokenizerWrapper) -> Parser:
        """What reads the text between the markers; it may raise anything."""
        if self.native:
            parser: Parser = tokenizer.tool_parser
            return parser
        return _read_json


OURS = ToolFormat("<tool_call>", "</tool_call>", is_json=True, native=False)


def native_format(tokenizer: TokenizerWrapper) -> ToolFormat | None:
    """The model's own format; None if its template shows no tools or mlx-lm reads no calls."""
    if not (tokenizer.has_tool_calling and _shows_tools(tokenizer)):
        return None
    return ToolFormat(
        tokenizer.tool_call_start,
        tokenizer.tool_call_end,
        is_json=tokenizer.init_kwargs.get("tool_parser_type") in _JSON_PARSERS,
        native=True,
    )


def _shows_tools(tokenizer: TokenizerWrapper) -> bool:
    """Whether a tool changes what the model's template makes of a message."""
    messages = [{"role": "user", "content": "Hello"}]

    def render(tools: list[Any] | None) -> str:
        options = {"tokenize": False, "add_generation_prompt": True}
        return str(tokenizer.apply_chat_template(messages, tools=tools, **options))

    try:
        return render([_PROBE]) != render(None)
    except Exception:  # templates run arbitrary expressions
        return False


def _read_json(text: str, tools: list[Any]) -> Any:
    return json.loads(text)
