"""The format in which a model's template expects messages, found by trying.

Most templates expect text as a string and the arguments of a call as a mapping. Those of vision
models iterate over lists of parts, some of them only for some roles. And some templates
concatenate the arguments to a string, so they need JSON text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .tokenizer_cache import cached_per_tokenizer

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

Messages = list[dict[str, Any]]

_WORD, _ARGUMENT = "zqxprobe", "zqxargument"
# A list of parts, or a mapping, that was printed as Python does.
_PYTHON = re.compile(rf"""["']text["']: ["']{_WORD}|{_ARGUMENT}\W{{1,4}}True""")


@dataclass(frozen=True)
class MessageFormat:
    """How a template expects messages.

    Attributes:
        parts: the roles whose content must be a list with one text part.
        json_arguments: the arguments of calls must be JSON text.
    """

    parts: frozenset[str] = frozenset()
    json_arguments: bool = False

    def write(self, messages: Messages) -> Messages:
        """Convert messages from the plain format into this one."""
        return [self._write(message) for message in messages]

    def _write(self, message: dict[str, Any]) -> dict[str, Any]:
        written = dict(message)
        if message["role"] in self.parts:
            written["content"] = [{"type": "text", "text": message["content"]}]
        if self.json_arguments and "tool_calls" in message:
            written["tool_calls"] = [
                {**call, "function": _with_json(call["function"])} for call in message["tool_calls"]
            ]
        return written


PLAIN = MessageFormat()


@cached_per_tokenizer
def message_format(tokenizer: TokenizerWrapper) -> MessageFormat:
    """The format of a tokenizer's template; the plain one if that works."""
    known = PLAIN
    for role in _PROBES:
        if role == "developer" and not takes_developer(tokenizer):
            continue
        known = next(
            (tried for tried in _candidates(known, role) if _gets_through(tokenizer, role, tried)),
            known,
        )
    return known


@cached_per_tokenizer
def takes_developer(tokenizer: TokenizerWrapper) -> bool:
    """Whether a template supports the role "developer". It may mention it only to refuse it."""
    return "developer" in str(tokenizer.chat_template) and any(
        _gets_through(tokenizer, "developer", tried) for tried in _candidates(PLAIN, "developer")
    )


def _candidates(known: MessageFormat, role: str) -> Iterator[MessageFormat]:
    for json_arguments in (False, True) if role == "tool" else (False,):
        for parts in (known.parts, known.parts | {role}):
            yield MessageFormat(parts, json_arguments)


def _gets_through(tokenizer: TokenizerWrapper, role: str, tried: MessageFormat) -> bool:
    """Whether a message of a role gets into the prompt, and is not printed as a Python value."""
    try:
        text = str(
            tokenizer.apply_chat_template(
                tried.write(_PROBES[role]), tokenize=False, add_generation_prompt=True
            )
        )
    except Exception:  # templates run arbitrary expressions
        return False
    if _PYTHON.search(text) or (role == "tool" and _ARGUMENT not in text):
        return False
    return _WORD in text


def _with_json(function: dict[str, Any]) -> dict[str, Any]:
    return {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}


_HELLO = {"role": "user", "content": "Hello"}
_CALL = {
    "id": "a1b2c3d4e",
    "type": "function",
    "function": {"name": "probe", "arguments": {_ARGUMENT: True}},
}
_PROBES: dict[str, Messages] = {
    "user": [{"role": "user", "content": _WORD}],
    "system": [{"role": "system", "content": _WORD}, _HELLO],
    "developer": [{"role": "developer", "content": _WORD}, _HELLO],
    "assistant": [_HELLO, {"role": "assistant", "content": _WORD}, _HELLO],
    "tool": [
        _HELLO,
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "a1b2c3d4e", "name": "probe", "content": _WORD},
    ],
}
