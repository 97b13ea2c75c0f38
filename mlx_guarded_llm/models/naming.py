"""How a model is named: an alias, a folder or a repository, and options in brackets.

    phi3-mini                                      as the catalog has it
    phi3-mini[kv_bits=8,context_window=8192]       with these options
    phi3-mini[]                                    without any, whatever was loaded as phi3-mini
    phi3-mini[kv_bits=8][kv_bits=4]                the last one counts

A value with a comma, a quote or a bracket is in JSON's quotes. If the name of a folder or an alias
itself ends in brackets, it is that folder or alias, and may be followed by more brackets.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequest
from ..json_values import plain_scalar, readable, shown
from .hosts import hosts_text
from .spec import LOAD_OPTIONS

_MAX_NAME = 4096  # no path and no repository is longer
_PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^",\[\]]+)(?:,|$)')
_PLAIN = re.compile(r'[^",\[\]]+')


def model_name(name: object) -> str:
    """A name as text; a `Path` becomes one.

    Raises:
        InvalidRequest: it is neither, or empty, or too long.
    """
    text: Any = name
    if type(name) is not str:
        with readable("the model name"):
            text = spelled(name)
    wrong = not isinstance(text, str) or not text.strip() or "\0" in text or len(text) > _MAX_NAME
    if wrong or not isinstance(text, str):
        raise InvalidRequest(
            f"the model name is {shown(name)}; it must be a non-empty string.",
            hint='Give an alias, a folder or "org/repo".',
        )
    return text


def spelled(name: Any) -> Any:
    """A path as text, and any subclass of str as str; anything else as it is."""
    text = os.fspath(name) if isinstance(name, os.PathLike) else name
    return str.__str__(text) if isinstance(text, str) else text


def with_options(name: str, options: Mapping[str, object], *, always: bool = False) -> str:
    """A name followed by options in brackets. Options that are None are left out.

    Brackets that it has already stay: only a catalog knows whether they are options, and
    `Catalog.full_name` merges all into one pair.

    Args:
        name: of a model.
        options: some of `LOAD_OPTIONS`.
        always: append brackets even if there are no options.
    """
    given = [f"{k}={_written(k, v)}" for k, v in sorted(options.items()) if v is not None]
    return f"{name}[{','.join(given)}]" if given or always else name


def split_options(name: str) -> tuple[str, dict[str, Any]] | None:
    """The name before the brackets and the options in them; None if it does not end so."""
    start = name.rfind("[") if name.endswith("]") else -1
    while start > 0:
        options = _read(name[start + 1 : -1])
        if options is not None:
            return name[:start], options
        start = name.rfind("[", 0, start)  # that bracket was in a quoted value
    return None


def bare_name(name: str) -> str:
    """A name without the options in brackets behind it."""
    return (split_options(name) or (name,))[0]


def _read(text: str) -> dict[str, Any] | None:
    options: dict[str, Any] = {}
    end = 0
    while end < len(text):
        pair = _PAIR.match(text, end)
        if pair is None or pair[1] not in LOAD_OPTIONS:
            return None
        try:
            options[pair[1]] = _value(pair[1], pair[2])
        except ValueError:
            return None
        end = pair.end()
    return options


def _value(option: str, text: str) -> Any:
    value = json.loads(text) if text.startswith('"') else text
    texts = ("revision", "adapter_path", "draft", "hosts")
    number = option not in texts and re.fullmatch(r"[0-9]+", value)
    return int(value) if number else value


def _written(key: str, value: object) -> str:
    plain = hosts_text(value) if key == "hosts" else plain_scalar(spelled(value), key)
    if not isinstance(plain, (str, int)):
        raise InvalidRequest(f"{key} is {shown(plain)}; it must be a text or an integer.")
    with readable(key):
        text = str(plain)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
