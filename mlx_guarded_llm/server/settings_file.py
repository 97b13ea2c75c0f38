"""A settings file that lists every setting, commented out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .settings import PREFIX, Key, ModelEntry, Settings

_WIDTH = 44  # columns before the comment

_HEAD = f"""\
# Settings of `mlx-guarded serve`. What is commented out is the default.
# {PREFIX}PORT=9000 and {PREFIX}GUARD__LOAD_WAIT=5 in the environment win over this file,
# and flags win over both. `mlx-guarded config` shows what is in force, and from where.
"""


def commented() -> str:
    """The text of the file."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield _HEAD
    tables: list[tuple[str, type[BaseModel]]] = []
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            tables.append((name, kind))
        elif name not in ("models", "keys"):
            yield _line(name, field)
    for name, kind in tables:
        yield f"\n[{name}]"
        yield from (_line(inner, field) for inner, field in kind.model_fields.items())
    yield '\n# A table for each model: [models.NAME], or [models."org/NAME"].'
    yield "# [models.smollm2-135m]"
    yield from (_line(inner, field) for inner, field in ModelEntry.model_fields.items())
    yield "\n# A table for each key, if there is to be any: [keys.NAME]."
    yield "# [keys.alice]"
    yield from (_line(inner, field) for inner, field in Key.model_fields.items())
    yield ""


def _line(name: str, field: FieldInfo) -> str:
    written = f"# {name} = {_value(field.get_default(call_default_factory=False))}"
    return f"{written:<{_WIDTH}} # {field.description}" if field.description else written


def _value(value: Any) -> str:
    if value is None or value is PydanticUndefined:
        return '""'
    if isinstance(value, BaseModel):
        pairs = value.model_dump(exclude_none=True).items()
        return "{ " + ", ".join(f"{name} = {_value(inner)}" for name, inner in pairs) + " }"
    return json.dumps(list(value) if isinstance(value, tuple) else value)
