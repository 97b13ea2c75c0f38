"""Checking and sorting the arguments of calls, where they come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast, get_args

from ..errors import InvalidRequest
from ..guard import Priority
from ..json_values import (
    BUILTIN,
    byte_count,
    plain_list,
    plain_number,
    plain_scalar,
    plain_text,
    readable,
    shown,
)
from ..models import LOAD_OPTIONS
from ..params import SamplingParams, checked_schema
from ..request import PromptRequest
from ..tool_functions import as_tool

T = TypeVar("T")

FOREVER = 1e9  # seconds; clocks and locks refuse infinity
MOST = 2**31 - 1  # of anything that is counted
MOST_BYTES = 2**50
MAX_LABEL = 1024  # characters

_KINDS: Mapping[str, str] = {  # of options; a field of `SortedOptions` for each
    **dict.fromkeys(SamplingParams.__dataclass_fields__, "sampling"),
    **dict.fromkeys(PromptRequest.__dataclass_fields__.keys() - {"prompt", "_"}, "prompting"),
    **dict.fromkeys(LOAD_OPTIONS, "loading"),
    "priority": "scheduling",
}


@dataclass(frozen=True)
class SortedOptions:
    """The options of a call by what they are for. Those at None are left out."""

    sampling: dict[str, Any] = field(default_factory=dict)
    prompting: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    scheduling: dict[str, Any] = field(default_factory=dict)

    @property
    def of_a_call(self) -> dict[str, Any]:
        """All that may differ from one call to the next, which excludes the load's."""
        return {**self.sampling, **self.prompting, **self.scheduling}


def sort_options(options: Mapping[str, Any]) -> SortedOptions:
    """Sort the options of `generate`: for `SamplingParams`, for `PromptRequest`, for a load,
    and `priority` for the guard.

    Values of the caller's own classes become plain ones here; ranges are checked where the
    request is made. A second pass finds plain values, and copies nothing again.

    Raises:
        InvalidRequest: there is no such option, or one cannot be read.
    """
    if not options.keys() <= _KINDS.keys():
        raise InvalidRequest(
            f"unknown option {min(options.keys() - _KINDS.keys())!r}.",
            hint=f"There are: {', '.join(sorted(_KINDS))}.",
        )
    found = SortedOptions()
    for name, value in options.items():
        if value is None:
            continue
        plain = value if type(value) in BUILTIN else _plain(name, value)
        getattr(found, _KINDS[name])[name] = plain
    if found.scheduling:
        found.scheduling["priority"] = checked_priority(found.scheduling["priority"])
    return found


def tokens_prompt(
    prompt: object, special_tokens: bool, options: Mapping[str, Any]
) -> tuple[SortedOptions, PromptRequest | str]:
    """What `Backend.tokens` is asked: its options, and the prompt.

    Returns:
        The prompt as text alone if it is without special tokens.

    Raises:
        InvalidRequest: an option has nothing to do with it, or the prompt is wrong.
    """
    given = sort_options(options)
    if given.sampling or given.scheduling:
        name = min({**given.sampling, **given.scheduling})
        raise InvalidRequest(f"{name} has nothing to do with the tokens of a prompt.")
    if switch("special_tokens", special_tokens):
        return given, PromptRequest(cast(Any, prompt), **given.prompting)
    if given.prompting == {"raw": True} and isinstance(prompt, str):
        return given, plain_text(prompt, "prompt")
    raise InvalidRequest(
        "special_tokens=False is for plain text.", hint="Pass a string and raw=True."
    )


def _plain(name: str, value: Any) -> Any:
    """The plain value of an option. `PromptRequest` copies messages and tools itself."""
    if name == "schema":
        with readable(name):
            written = getattr(value, "model_json_schema", None)  # a pydantic class has it
            value = written() if callable(written) else value
        return checked_schema(value) if isinstance(value, Mapping) else plain_scalar(value, name)
    if name == "tools":
        tools = plain_list(value, name)
        for place, tool in enumerate(tools):
            with readable(f"tools[{place}]"):
                tools[place] = as_tool(tool)
        return tools
    return plain_scalar(value, name)


def seconds(name: str, value: float, least: float = 0.0) -> float:
    """A duration, checked; infinity becomes `FOREVER`."""
    number = plain_number(value)
    if isinstance(number, (int, float)) and not isinstance(number, bool) and number >= least:
        return min(number, FOREVER) * 1.0
    raise _wrong(name, value, f"a number of seconds, {least:g} or more")


def count(name: str, value: int) -> int:
    """A positive integer, checked."""
    number = plain_number(value)
    if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MOST:
        return number
    raise _wrong(name, value, f"an integer, 1 to {MOST}")


def byte_size(name: str, value: int | str, least: int) -> int:
    """Bytes, given as a number or as text such as "12GB" or "1.5 GiB"."""
    size = byte_count(value)
    if size is None or not least <= size <= MOST_BYTES:
        raise _wrong(name, value, 'bytes, or text such as "12GB"')
    return size


def wired_size(value: int | str | None) -> int | Literal["recommended"] | None:
    """Bytes of wired memory, or the word for what the device recommends."""
    if value is None or value == "recommended":
        return None if value is None else "recommended"
    return byte_size("wired_memory", value, 1)


def switch(name: str, value: bool) -> bool:
    """True or False, and no other value that merely counts as one of them."""
    if not isinstance(value, bool):
        raise _wrong(name, value, "True or False")
    return value


def label(name: str, value: str) -> str:
    """A caller's own name for a request or a function, as the record can carry it."""
    if not isinstance(value, str):
        raise _wrong(name, value, "a string")
    text = plain_text(value, name)
    if len(text) > MAX_LABEL:
        raise InvalidRequest(f"{name} has {len(text)} characters; {MAX_LABEL} are the most.")
    return text


def callback(name: str, value: T | None) -> T | None:
    """Something to call, or None."""
    if value is not None and not callable(value):
        raise _wrong(name, value, "a function, or None")
    return value


def choice(name: str, value: str, among: tuple[str, ...]) -> None:
    """One of the given words."""
    word = value if type(value) is str else plain_scalar(value, name)
    if not isinstance(word, str) or word not in among:
        raise _wrong(name, value, " or ".join(repr(word) for word in among))


def checked_priority(value: str | None) -> Priority:
    """Whether a request lets others go first; None says nothing."""
    if value is None:
        return "interactive"
    choice("priority", value, get_args(Priority))
    return "batch" if value == "batch" else "interactive"


def _wrong(name: str, value: object, wanted: str) -> InvalidRequest:
    """The error. None is refused too: it could mean the default, or no limit."""
    hint = f"Leave {name} out for its default." if value is None else ""
    return InvalidRequest(f"{name} is {shown(value)}; it must be {wanted}.", hint=hint)
