"""`/openapi.json`: the paths and what they take, for programs that read such documents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute, Route

from ..version import __version__
from .api import Api, owner
from .errors import STATUSES, phrase

_REFERENCE = "#/components/schemas/{model}"
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


def describe(apis: Sequence[Api]) -> dict[str, Any]:
    """The OpenAPI document of some APIs."""
    bodies: dict[str, type[BaseModel]] = {}
    queries: dict[str, type[BaseModel]] = {}
    for api in apis:
        bodies |= api.bodies
        queries |= api.queries
    kinds = dict.fromkeys([*bodies.values(), *(api.error_body for api in apis)])
    names, definitions = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template=_REFERENCE
    )
    paths: dict[str, Any] = {}
    for path, method, route in _operations(route for api in apis for route in api.routes):
        kind = bodies.get(path)
        schema = names[(kind, "validation")] if kind and method == "post" else None
        error = names[(owner(apis, path).error_body, "validation")]
        query = queries.get(path) if method == "get" else None
        shown = _PARAMETER.sub(r"{\1}", path)
        # Of two routes with one path the first answers, unless a header says otherwise.
        paths.setdefault(shown, {}).setdefault(
            method, _operation(path, route, schema, query, error if method != "head" else None)
        )
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlx-guarded-llm", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operations(routes: Iterator[BaseRoute]) -> Iterator[tuple[str, str, Route]]:
    for route in routes:
        if isinstance(route, Route):
            for method in sorted(route.methods or ()):
                yield route.path, method.lower(), route


def _operation(
    path: str,
    route: Route,
    body: Mapping[str, Any] | None,
    query: type[BaseModel] | None,
    error: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """One operation; the errors of a HEAD have no body."""
    summary = (route.endpoint.__doc__ or "").strip().partition("\n")[0]
    answers: dict[str, Any] = {"200": {"description": "The answer."}}
    for status in STATUSES:
        answers[str(status)] = {"description": phrase(status), **_content(error)}
    operation: dict[str, Any] = {"summary": summary, "responses": answers}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(path)
    ]
    if query is not None:
        parameters += [
            {"name": name, "in": "query", "required": False, "schema": schema_of}
            for name, schema_of in query.model_json_schema()["properties"].items()
        ]
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, **_content(body)}
    return operation


def _content(schema: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}} if schema is not None else {}
