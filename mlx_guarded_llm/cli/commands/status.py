"""`mlx-guarded status`: whether a server runs, and what it does."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from ...errors import GuardedLLMError, InvalidRequest
from ...holder import Holder
from ...record.phrases import counted, seconds, size
from .. import arguments, backends, reporting
from ..console import harmless, out, say, short, write
from ..model_values import as_json, request_as_json

if TYPE_CHECKING:
    from ...backend import RequestStatus
    from ...backend.remote.backend import RemoteBackend
    from ...backend.shared_server import ServerEntry


def status(url: arguments.Url = None, as_json_: arguments.AsJson = False) -> None:
    """Tell whether a server runs, and what it does.

    The models that it holds and its requests under way are among it.

    The exit code is 0 if one runs and answers, otherwise 1.

    [dim]mlx-guarded status
    mlx-guarded status --json | jq .memory_bytes
    mlx-guarded status || mlx-guarded serve --background[/dim]
    """
    found = _ask(url)
    if as_json_:
        write(json.dumps(found, indent=2) + "\n")
    else:
        _show(found)
    if not found["answers"]:
        raise typer.Exit(reporting.FAILED)


def _ask(url: str | None) -> dict[str, Any]:
    """What can be learnt; "running" and "answers" always, "error" and "hint" if it does not."""
    from ...backend import shared_server
    from ...backend.default_backend import named_server

    named = url or named_server()
    entry = shared_server.running() if named is None else None
    if named is None and entry is None:
        return {"running": False, "answers": False}
    told = _entry(entry) if entry is not None else {}
    try:
        where = named or shared_server.url_of(shared_server.socket_path())
        with backends.open_server(where) as backend:
            return {"running": True, "answers": True, **told, **_state(backend)}
    except GuardedLLMError as error:
        text = {"error": error.message, "hint": error.hint}
        return {"running": entry is not None, "answers": False, **told, **text}


def _entry(entry: ServerEntry) -> dict[str, Any]:
    return {**asdict(entry), "uptime_seconds": round(time.time() - entry.started, 1)}


def _state(backend: RemoteBackend) -> dict[str, Any]:
    health = backend.health()
    return {
        **_entry(backend.server_entry()),
        "engine": health.engine,
        "memory_bytes": health.memory_bytes,
        "memory_budget_bytes": health.budget_bytes,
        "memory_held_by": [holder._asdict() for holder in health.held_by],
        "requests_running": health.running,
        "requests_waiting": health.waiting,
        "oldest_waiting_seconds": round(health.oldest_waiting, 1),
        "models": [as_json(model) for model in backend.models()],
        "requests": [request_as_json(request) for request in _requests(backend)],
    }


def _requests(backend: RemoteBackend) -> list[RequestStatus]:
    try:
        return backend.requests()
    except InvalidRequest:  # this key may not see what others do
        return []


def _show(found: dict[str, Any]) -> None:
    if not found["running"] and "error" not in found:
        say(out(), "No shared server of yours runs. `mlx-guarded serve --background` starts it.")
        return
    table = Table.grid(padding=(0, 2))
    for label, text in _lines(found):
        table.add_row(Text(label, style="dim"), harmless(text))
    if table.row_count:
        out().print(table)
    if "error" in found:
        reporting.show_error(found["error"], found["hint"])


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    if "pid" in found:
        up = seconds(found["uptime_seconds"])
        who = f"version {found['version']}, process {found['pid']}, for {up}"
        lines.append(("server", who if found["state"] == "serving" else f"{who}, {found['state']}"))
        lines += [("at", url) for url in found["urls"]]
        if found["log"]:
            lines.append(("log", found["log"]))
    if not found["answers"]:
        return lines
    memory = f"{size(found['memory_bytes'])} of {size(found['memory_budget_bytes'])}"
    lines.append(("memory", memory if found["memory_budget_bytes"] else "no model was asked for"))
    lines += [("elsewhere", Holder(**holder).text) for holder in found["memory_held_by"]]
    waiting = f"{found['requests_running']} running, {found['requests_waiting']} waiting"
    if found["requests_waiting"]:
        waiting += f", the oldest for {seconds(found['oldest_waiting_seconds'])}"
    lines.append(("requests", waiting))
    lines += [("model", _model(model)) for model in found["models"]]
    lines += [("request", _request(request)) for request in found["requests"]]
    return lines


def _model(model: dict[str, Any]) -> str:
    parts = [model["state"], *["pinned"] * model["pinned"]]
    parts += [size(model["memory_bytes"])] * bool(model["memory_bytes"])
    parts += [f"{model[what]} {what}" for what in ("running", "waiting") if model[what]]
    return f"{short(model['name'])}: {', '.join(parts)}"


def _request(request: dict[str, Any]) -> str:
    tokens = counted(request["tokens"], "token") if request["tokens"] else ""
    return f"{request['request_id']}: {', '.join(filter(None, (request['words'], tokens)))}"
