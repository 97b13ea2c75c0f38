"""Copies and pickles of models that were given a backend."""

from __future__ import annotations

from typing import Any, Self


class SharesBackend:
    """A copy shares the backend; a pickle leaves it behind, and takes the shared one.

    The address of a server goes with both.

    Frameworks copy the models they are given. A backend is a process and its threads: it
    can be neither copied nor pickled. It goes before the pydantic class among the bases.
    """

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        backend = self.__dict__.get("backend")
        copying: Any = super()
        copied: Self = copying.__deepcopy__({**(memo or {}), id(backend): backend})
        return copied

    def __getstate__(self) -> dict[str, Any]:
        whole: Any = super().__getstate__()
        backend = whole["__dict__"].get("backend")
        kept = backend if isinstance(backend, str) else None
        return {**whole, "__dict__": {**whole["__dict__"], "backend": kept}}
