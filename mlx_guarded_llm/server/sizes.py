"""Whether a request brings more than the limits allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import too_large
from .events import compact
from .settings import Limits


def check_sizes(
    limits: Limits,
    *,
    messages: int,
    tools: Sequence[Mapping[str, Any]],
    schema: Mapping[str, Any] | None = None,
    choices: int = 1,
) -> None:
    """Refuse what is too large.

    Args:
        messages: how many there are.
        tools: with their schemas.
        schema: that the answer is held to.
        choices: how many answers are wanted.

    Raises:
        HTTPError: which limit, and how far beyond it.
    """
    for name, size in (("messages", messages), ("tools", len(tools)), ("choices", choices)):
        if size > getattr(limits, name):
            raise too_large(name, f"{size:,}", getattr(limits, name))
    bytes_ = sum(len(compact(part).encode()) for part in (schema, *tools) if part)
    if bytes_ > limits.schema_bytes:
        raise too_large("schema_bytes", f"{bytes_:,}", limits.schema_bytes)
