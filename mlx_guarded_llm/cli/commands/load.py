"""`mlx-guarded load`: make a model resident in a server."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ...record.phrases import size
from .. import arguments, backends, reporting
from ..console import out, say, short, write
from ..facts import LoadFacts
from ..model_values import as_json
from ..status_line import open_line


def load(
    model: arguments.Model,
    pin: Annotated[
        bool, typer.Option("--pin", help="Keep it from being evicted for another model.")
    ] = False,
    timeout: arguments.Timeout = None,
    revision: arguments.Revision = None,
    adapter_path: arguments.AdapterPath = None,
    kv_bits: arguments.KVBits = None,
    kv_group_size: arguments.KVGroupSize = None,
    context_window: arguments.ContextWindow = None,
    draft: arguments.Draft = None,
    hosts: arguments.Hosts = None,
    url: arguments.Url = None,
    as_json_: arguments.AsJson = False,
) -> None:
    """Load a model, and wait for it.

    The load waits for running generations, as that of a request does. A model
    that is loaded already stays so.

    [dim]mlx-guarded load phi3-mini --pin
    mlx-guarded load qwen3-4b --kv-bits 8
    mlx-guarded load phi3-mini --url http://127.0.0.1:8080[/dim]
    """
    options = arguments.given(
        revision=revision,
        adapter_path=adapter_path,
        kv_bits=kv_bits,
        kv_group_size=kv_group_size,
        context_window=context_window,
        draft=draft,
        hosts=hosts,
    )
    with backends.open_server(url) as backend:
        try:
            with open_line(model, LoadFacts(backend, model)) as line:
                info = backend.load(
                    model, pin=pin, timeout=timeout, on_progress=line.update, **options
                )
        except KeyboardInterrupt:
            reporting.note(f"cancelled; {short(model)} is not loaded, unless others want it.")
            raise typer.Exit(reporting.CANCELLED) from None
    if as_json_:
        write(json.dumps(as_json(info)) + "\n")
        return
    pinned = ", pinned" if info.pinned else ""
    say(
        out(),
        f"{short(info.name)} is loaded{pinned}: {size(info.memory_bytes)}, "
        f"{info.context_window:,} tokens of context",
    )
