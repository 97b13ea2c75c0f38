"""One API as its clients see it: its paths, and the shape of its errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from .errors import HTTPError


@dataclass(frozen=True)
class Api:
    """One API.

    Attributes:
        routes: its paths.
        error: the body that tells of an error.
        error_body: its shape.
        prefixes: of paths whose errors have this shape, those of no route as well; by default of
            every target of a request, "*" and what is no path among them.
        bodies: what the body of a POST is, by path.
        queries: the parameters in the address of a GET, by path.
    """

    routes: Sequence[BaseRoute]
    error: Callable[[HTTPError], Mapping[str, Any]]
    error_body: type[BaseModel]
    prefixes: tuple[str, ...] = ("",)
    bodies: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    queries: Mapping[str, type[BaseModel]] = field(default_factory=dict)

    def owns(self, path: str) -> bool:
        """Whether a path's errors are told in its shape."""
        return path.startswith(self.prefixes)


def owner(apis: Sequence[Api], path: str) -> Api:
    """The API whose shape the errors of a path have: the first that owns it."""
    return next(api for api in apis if api.owns(path))


def error_response(apis: Sequence[Api], path: str, error: HTTPError) -> Response:
    """The response that tells of an error."""
    api = owner(apis, path)
    return JSONResponse(api.error(error), error.status, headers=dict(error.headers))
