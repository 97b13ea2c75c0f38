"""Making the backend of a command. Tests put a fake one here."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..backend import Backend


def open_backend(**options: Any) -> AbstractContextManager[Backend]:
    """A backend to use in a `with` statement; options are those of `Backend`."""
    from ..backend import Backend

    return Backend(**options)
