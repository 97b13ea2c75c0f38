"""Calls at the beginning of an answer that lack the markers around them.

Small models forget the markers, and some were trained without any. What distinguishes a call from
other JSON is that it names an offered function in the right place.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import lru_cache
from typing import Any

from .cursor import Cursor
from .json_forms import Calls, called
from .offered import Offered
from .value_forms import python_calls
from .values import NotACall


def unmarked(
    cursor: Cursor, offered: Offered, start: str, end: str
) -> Generator[None, None, Calls]:
    """A JSON object or list, in a block of code or not, or a list of Python's calls.

    A block of code is a call only if nothing follows it; otherwise it is an example.
    """
    fence = yield from cursor.take("```")
    if fence:
        yield from cursor.take("json")
    kind = yield from cursor.starts(_beginning(tuple(offered)))
    if not kind:
        raise NotACall("no function that was offered is called here")
    calls: Calls = []
    if fence:
        yield from cursor.space()
    else:
        cursor.begun = True
    if kind == "python":
        yield from cursor.expect("[")
        calls += yield from python_calls(cursor, offered)
    else:
        calls += called((yield from cursor.json()), offered)
    if fence:
        cursor.begun = False
        yield from cursor.space()
        yield from cursor.expect("```")
        yield from cursor.space()
        if (yield from cursor.peek()):
            raise NotACall("it is an example")
        return calls
    while True:
        yield from cursor.space()
        if not (yield from cursor.take(";")) and (yield from cursor.peek()) != "{":
            return calls
        yield from cursor.space()
        calls += called((yield from cursor.json()), offered)


@lru_cache(maxsize=64)
def _beginning(names: tuple[str, ...]) -> Any:
    """A pattern for the beginning of a call of one of these functions."""
    import regex  # type: ignore[import-untyped]  # it has no stubs

    name = rf"(?:functions\.)?(?:{'|'.join(map(regex.escape, names))})"
    pair = r'"(?:id|type|tool_call_id)"\s{0,9}:\s{0,9}"[^"]{0,99}"\s{0,9},\s{0,9}'
    json = (
        r"(?:\[\s{0,9})?\{\s{0,9}"
        rf'(?:{pair}){{0,3}}(?:"function"\s{{0,9}}:\s{{0,9}}\{{\s{{0,9}})?'
        rf'"(?:name|tool_name)"\s{{0,9}}:\s{{0,9}}"{name}"\s{{0,9}}'
        r'(?:\}|,\s{0,9}"(?:arguments|parameters)")'
    )
    return regex.compile(rf"\s{{0,9}}(?:(?P<json>{json})|(?P<python>\[\s{{0,9}}{name}\())")
