"""mlx-guarded-llm on Ray Serve: one server, and a guarded backend at each replica.

    serve run mlx_guarded_ray:app config=server.toml replicas=2

`routing` decides which replica gets a request; it needs no Ray, nor does `book`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .application import Cluster, app, build

__version__ = "0.1.0"

__all__ = ["Cluster", "app", "build"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import application

        return getattr(application, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
