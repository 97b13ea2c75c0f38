"""`mlx-guarded serve`: the models of this machine over HTTP."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ...errors import InvalidRequest
from .. import reporting
from ..console import harmless, out, say

if TYPE_CHECKING:
    from ...server.running import Serving
    from ...server.settings import Loaded, Settings

CONFIG_VARIABLE = "MLX_GUARDED_CONFIG"
CLOSE_GRACE = 60.0  # seconds; a slice of a load may have to end first
_HASTE = 2.0  # seconds, after a second signal or an error
_SHOWN = 20  # models
_EXAMPLE = "smollm2-135m"  # where no model is named

Config = Annotated[
    Path | None,
    typer.Option(
        help="Settings in TOML; else the variable MLX_GUARDED_CONFIG names the file.",
        show_default=False,
        dir_okay=False,
    ),
]


def serve(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A model to serve: an alias, a repository, or a name of yours and its folder. "
            "Repeatable.",
            metavar="NAME[=FOLDER]",
            show_default=False,
        ),
    ] = None,
    models_root: Annotated[
        list[Path] | None,
        typer.Option(
            help="Serve every model folder below this one. Repeatable.", show_default=False
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address; another than loopback needs a key.", show_default="127.0.0.1"),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="0 takes a free one.", show_default="8080")
    ] = None,
    uds: Annotated[
        Path | None,
        typer.Option(help="Listen at a Unix socket instead, of this user's.", show_default=False),
    ] = None,
    share: Annotated[
        bool,
        typer.Option(
            "--share",
            help="Be your shared server, which your programs find by themselves; at a port as well "
            "only with --host or --port.",
        ),
    ] = False,
    background: Annotated[
        bool,
        typer.Option("--background", help="As --share, and go on when this command has ended."),
    ] = False,
    key_file: Annotated[
        Path | None,
        typer.Option(
            help='Keys that clients must show: lines of "name key", or "name key model,model".',
            show_default=False,
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(help="debug, info, warning, error or off, to stderr.", show_default="warning"),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(help="text, or json with an object on each line.", show_default="text"),
    ] = None,
    log_file: Annotated[
        Path | None,
        typer.Option(
            help="A file instead of stderr, once it serves.", show_default=False, dir_okay=False
        ),
    ] = None,
    config: Config = None,
    write_config: Annotated[
        Path | None,
        typer.Option(
            help="Write a file with every setting, commented, and end.", show_default=False
        ),
    ] = None,
) -> None:
    """Serve models over HTTP, for every client that knows OpenAI's API.

    A model is loaded when it is first asked for. Only models that are named
    here or in the settings can be asked for, and only from this machine,
    unless there are keys. Ctrl-C or SIGTERM lets answers end; a second one
    ends at once.

    [dim]mlx-guarded serve --model smollm2-135m
    mlx-guarded serve --models-root ~/models --port 9000
    mlx-guarded serve --model qwen=~/qwen3-4b --host 0.0.0.0 --key-file keys
    mlx-guarded serve --write-config server.toml
    mlx-guarded serve --config server.toml
    mlx-guarded serve --background           status and stop are commands, too[/dim]
    """
    if write_config is not None:
        _write(write_config)
        return
    flags: dict[str, Any] = {
        "models": dict(map(_entry, model or ())),
        "models_roots": [str(_whole(root)) for root in models_root or ()],
        "host": host,
        "port": port,
        "uds": None if uds is None else str(uds),
        "log_level": log_level,
        "log_format": log_format,
        "log_file": None if log_file is None else str(_whole(log_file)),
        "share": share or background or None,
        "key_file": None if key_file is None else str(key_file),
    }
    given = {name: value for name, value in flags.items() if value not in (None, {}, [])}
    settings = load(config, given).settings
    if background:
        _in_background(context, settings)
    else:
        _run(settings)


def load(config: Path | None, flags: dict[str, Any]) -> Loaded:
    """The settings of a command.

    Raises:
        InvalidRequest: they are wrong, or the extra is not installed.
    """
    try:
        from ...server.settings import load_settings
    except ImportError as error:
        raise InvalidRequest(
            f"the server's packages are not installed ({error}).",
            hint='pip install "mlx-guarded-llm[server]"',
        ) from error
    named = os.environ.get(CONFIG_VARIABLE)
    return load_settings(config or (Path(named) if named else None), flags)


def _in_background(context: typer.Context, settings: Settings) -> None:
    """Start another process that serves, and wait until it does."""
    from ...backend import shared_server
    from ..detached import start

    flags = [f"--{name.replace('_', '-')}={value}" for name, value in _given(context)]
    log = settings.log_file or shared_server.log_path()
    start(["--share", f"--log-file={log}", *flags], log)


def _given(context: typer.Context) -> Iterator[tuple[str, Any]]:
    """The flags of the command, without those that `_in_background` says itself."""
    for name, value in context.params.items():
        if name not in ("share", "background", "log_file", "write_config"):
            for item in value if isinstance(value, (list, tuple)) else [value]:
                if item is not None:
                    yield name, item


def _run(settings: Settings) -> None:
    from ...server import open_backend
    from ...server.log_lines import set_up, to_file
    from ...server.running import run, sharing

    def begun(serving: Serving) -> None:
        _welcome(serving, settings)
        if settings.log_file is not None:
            to_file(settings.log_file)

    set_up(settings)
    with sharing(settings) as claim:
        backend = open_backend(settings)
        at_leisure = False
        try:
            at_leisure = run(backend, settings, begun, claim)
        finally:
            backend.close(timeout=CLOSE_GRACE if at_leisure else _HASTE)
    if not at_leisure:
        raise typer.Exit(reporting.CANCELLED)


def _welcome(serving: Serving, settings: Settings) -> None:
    """What is served, where, and a line to try."""
    names, url = serving.models, serving.url
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    named = f"{harmless(', '.join(names[:_SHOWN]))}{more}"
    every = f"every model, {named} among them," if names else "every model"
    what = every if settings.share or settings.any_model else named
    say(out(), Text(f"Serving {what} at {url if serving.socket else f'{url}/v1'}"))
    for other in serving.urls[1:]:
        what = every if settings.any_model else named or "no model"
        say(out(), Text(f"and {what} at {other}/v1"))
    tried = names[0] if names else _EXAMPLE
    body = {"model": tried, "messages": [{"role": "user", "content": "Hi"}]}
    key = ' -H "authorization: Bearer $KEY"' if serving.needs_key else ""
    socket, where = "", url
    if serving.socket is not None:
        socket, where = f" --unix-socket {shlex.quote(str(serving.socket))}", "http://localhost"
    line = (
        f"curl{socket} {where}/v1/chat/completions{key} "
        f"-H 'content-type: application/json' -d {shlex.quote(json.dumps(body))}"
    )
    out().print(Text(f"Try: {harmless(line)}"), soft_wrap=True)  # to be copied, so on one line
    out().file.flush()


def _entry(text: str) -> tuple[str, dict[str, str]]:
    name, given, folder = text.partition("=")
    if not name or (given and not folder):
        raise InvalidRequest(
            f"--model is {text!r}; it must be NAME or NAME=FOLDER.",
            hint="As in --model qwen=~/models/qwen3-4b",
        )
    return name, {"model": str(_whole(Path(folder)))} if given else {}


def _whole(path: Path) -> Path:
    return path.expanduser().absolute()


def _write(file: Path) -> None:
    load(None, {})  # that the extra is there
    from ...server.settings_file import commented

    try:
        with file.open("x") as opened:
            opened.write(commented())
    except FileExistsError:
        raise InvalidRequest(f"{file} is there already.", hint="Name another file.") from None
    say(out(), f"Written: {file}")
