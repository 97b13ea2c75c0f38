"""Arguments of the backend, checked and sorted."""

from __future__ import annotations

import re
from typing import Any

from ..errors import InvalidRequest
from ..params import SamplingParams
from ..request import PromptRequest

FOREVER = 1e9  # seconds; clocks and locks refuse infinity
_UNITS = {"": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
_UNITS |= {"KIB": 1024, "MIB": 1024**2, "GIB": 1024**3, "TIB": 1024**4}

_SAMPLING = frozenset(SamplingParams.__dataclass_fields__)
_PROMPTING = frozenset(PromptRequest.__dataclass_fields__) - {"prompt", "_"}


def sort_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of `generate`, as those of `SamplingParams` and of `PromptRequest`.

    Raises:
        InvalidRequest: there is no such option.
    """
    unknown = sorted(options.keys() - _SAMPLING - _PROMPTING)
    if unknown:
        raise InvalidRequest(
            f"unknown option {unknown[0]!r}.",
            hint=f"There are: {', '.join(sorted(_SAMPLING | _PROMPTING))}.",
        )
    sampling = {k: v for k, v in options.items() if k in _SAMPLING}
    return sampling, {k: v for k, v in options.items() if k in _PROMPTING}


def seconds(name: str, value: float) -> float:
    """A duration, checked; infinity becomes `FOREVER`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise InvalidRequest(f"{name} is {value!r}; it must be a number of seconds, 0 or more.")
    return min(float(value), FOREVER)


def count(name: str, value: int) -> int:
    """A positive integer, checked."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidRequest(f"{name} is {value!r}; it must be an integer, 1 or more.")
    return value


def byte_size(name: str, value: int | str, least: int) -> int:
    """Bytes, given as a number or as text such as "12GB" or "1.5 GiB"."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", value)
        if match and match[2].upper() in _UNITS:
            return byte_size(name, int(float(match[1]) * _UNITS[match[2].upper()]), least)
    elif isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value
    raise InvalidRequest(f'{name} is {value!r}; it must be bytes, or text such as "12GB".')
