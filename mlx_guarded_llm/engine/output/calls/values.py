"""Reading values as models write them, exactly or not at all."""

from __future__ import annotations

import ast
import json
import math
import re
from typing import Any

CUT_OFF = "cut off"
MAX_DEPTH = 100  # of nested objects and lists


class NotACall(Exception):
    """The text is not a call; the message says why."""


def exact_json(text: str) -> Any:
    """The value of a JSON text.

    `json.loads` reads 1e400 as infinity, keeps the last of two equal keys, and turns a lone
    surrogate into half a character, which all differ from what was written. Raw line breaks and
    tabs in strings are accepted, since models sometimes write them.

    Raises:
        NotACall: it is not JSON, or its value cannot be held exactly.
    """
    try:
        value = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise NotACall("a string has half a character (a lone surrogate)") from None
    except (ValueError, RecursionError) as error:
        raise NotACall(f"it is not JSON ({error})") from None
    return value


def exact_float(text: str) -> float:
    """The number, rounded as every JSON reader rounds.

    Raises:
        NotACall: it is beyond the range of a float.
    """
    value = float(text)
    if math.isinf(value) or (value == 0 and re.search("[1-9]", re.split("[eE]", text)[0])):
        raise NotACall(f"the number {text[:40]} is beyond the range of a float")
    return value


def python_string(literal: str) -> str:
    """The value of a quoted string of Python. Raw line breaks in it are accepted.

    Raises:
        NotACall: it has an escape that Python does not know.
    """
    try:
        value = str(ast.literal_eval(literal.replace("\r", r"\r").replace("\n", r"\n")))
        value.encode()
    except (ValueError, SyntaxError, MemoryError) as error:
        raise NotACall(f"it is not a string of Python ({error})") from None
    return value


def python_word(word: str) -> Any:
    """A number, or a word of Python or JSON: None, true and so on.

    Raises:
        NotACall: it is neither.
    """
    if word in _WORDS:
        return _WORDS[word]
    try:
        return exact_json(word)
    except NotACall as error:
        raise NotACall(f"{word[:40]!r} is no value ({error})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in value if names.count(name) > 1)
        raise NotACall(f"{twice!r} is given twice")
    return value


def _no_number(word: str) -> Any:
    raise NotACall(f"{word} is no number of JSON")


_WORDS = {"True": True, "False": False, "None": None}
_DECODER = json.JSONDecoder(
    strict=False, parse_float=exact_float, parse_constant=_no_number, object_pairs_hook=_object
)
