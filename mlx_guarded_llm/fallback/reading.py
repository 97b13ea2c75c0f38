"""Reading the answers of other libraries, which may be mappings or objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def member(holder: Any, name: str) -> Any:
    """A key of a mapping or an attribute of an object; None when there is none."""
    if isinstance(holder, Mapping):
        return holder.get(name)
    return getattr(holder, name, None)


def members(holder: Any, name: str) -> list[Any]:
    """The items of the list under that name; empty when there is none."""
    found = member(holder, name)
    return list(found) if isinstance(found, (list, tuple)) else []
