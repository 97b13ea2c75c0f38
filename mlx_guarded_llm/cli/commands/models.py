"""`mlx-guarded models`: the models, and which of them would fit."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ...errors import GuardedLLMError
from ...record.phrases import size
from .. import arguments, backends
from ..console import harmless, out, say, short, write
from ..machine import this_machine

if TYPE_CHECKING:
    from ...memory.budget import MemoryLimits
    from ...models import Catalog

CONTEXT = 4096  # tokens
FETCHED_LATER = "not fetched"  # a state


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model. Sizes are in bytes, and None if the model is not on the disk.

    Attributes:
        context_window: in tokens.
        memory_bytes: the memory it is predicted to need.
        fits: whether it fits into the memory budget alone.
        error: what is wrong with its files, or "".
    """

    name: str
    kind: str
    location: str
    path: str | None = None
    size_bytes: int | None = None
    context_window: int | None = None
    memory_bytes: int | None = None
    fits: bool | None = None
    error: str = ""


def models(
    context: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of context to predict the memory for.", show_default=f"{CONTEXT}"
        ),
    ] = None,
    memory_budget: arguments.MemoryBudget = None,
    url: arguments.Url = None,
    local: arguments.Local = False,
    as_json: arguments.AsJson = False,
) -> None:
    """List the models that can be asked for.

    Those of a server, and what it holds in memory; or, with --local, --context
    or --memory-budget, or if there is no server, those on the disk of this
    machine, and what they would take.

    [dim]mlx-guarded models
    mlx-guarded models --context 32000
    mlx-guarded models --local --json | jq '.models | map(select(.fits))'[/dim]
    """
    server = backends.find_server(
        url=url, local=local, context=context, memory_budget=memory_budget
    )
    if server is not None:
        _of_server(server, as_json=as_json)
        return
    from ...models import Catalog

    context = context or CONTEXT
    machine = this_machine(memory_budget)
    entries = list_models(Catalog(), machine, context)
    if as_json:
        listed = [asdict(entry) for entry in entries]
        write(json.dumps({"budget_bytes": machine.budget_bytes, "models": listed}, indent=2) + "\n")
        return
    _show(entries, machine.budget_bytes, context)


def _of_server(url: str, *, as_json: bool) -> None:
    with backends.open_server(url) as backend:
        served = backend.served()
    if as_json:
        listed = [asdict(model) for model in served]
        write(json.dumps({"url": url, "models": listed}, indent=2) + "\n")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("model", overflow="fold", style="bold")
    table.add_column("state", no_wrap=True)
    for column in ("weights", "context", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    for model in served:
        if model.state != FETCHED_LATER:
            table.add_row(
                harmless(short(model.name)),
                model.state + ", pinned" * model.pinned,
                "" if model.weight_bytes is None else size(model.weight_bytes),
                "" if model.context_window is None else f"{model.context_window:,}",
                size(model.memory_bytes) if model.memory_bytes else "",
            )
    if table.row_count:
        out().print(table)
    later = [harmless(model.name) for model in served if model.state == FETCHED_LATER]
    if later:
        say(out(), Text(f"Fetched when they are first used: {', '.join(later)}", style="dim"))
    say(out(), Text(f"These are the models of the server at {url}.", style="dim"))


def list_models(catalog: Catalog, machine: MemoryLimits, context: int) -> list[Entry]:
    """Every alias, those on the disk first."""
    sizes: dict[tuple[str, str], int] = {
        (model.kind, model.location): model.size_bytes for model in catalog.on_disk()
    }
    entries = [_entry(catalog, name, sizes, machine, context) for name in catalog.aliases()]
    return sorted(entries, key=lambda entry: (entry.path is None, entry.name))


def _entry(
    catalog: Catalog,
    name: str,
    sizes: dict[tuple[str, str], int],
    machine: MemoryLimits,
    context: int,
) -> Entry:
    from ...memory.fit import Fit
    from ...models.disk import tree_size

    kind, location = "", catalog.aliases()[name].model
    try:
        spec = catalog.resolve(name)
        kind, location = spec.kind, spec.location
        files = catalog.find(spec)
        if files is None:
            return Entry(name=name, kind=kind, location=location)
        fit = Fit({name: files}, machine)
    except GuardedLLMError as error:
        return Entry(name=name, kind=kind or "folder", location=location, error=str(error))
    on_disk = sizes.get((kind, location))
    return Entry(
        name=name,
        kind=kind,
        location=location,
        path=str(files.path),
        size_bytes=tree_size(Path(location)) if on_disk is None else on_disk,
        context_window=files.context_window,
        memory_bytes=fit.together(context),
        fits=fit.together(context) <= fit.room,
    )


def _show(entries: list[Entry], budget: int, context: int) -> None:
    here = [entry for entry in entries if entry.path is not None or entry.error]
    if here:
        out().print(_table_of_fetched(here))
        note = (
            f"Memory is for {context:,} tokens of context; the budget of this machine is "
            f"{size(budget)}."
        )
        say(out(), Text(note, style="dim"))
        for entry in here:
            if entry.error:
                say(out(), Text(f"broken: {harmless(entry.error)}", style="red"))
    else:
        out().print("No model is on the disk.")
    table = Table.grid(padding=(0, 3))
    table.add_column(no_wrap=True)
    table.add_column(style="dim", overflow="ellipsis", no_wrap=True)
    for entry in entries:
        if entry not in here:
            made = entry.kind == "builtin"
            table.add_row(entry.name, "made from a package on PyPI" if made else entry.location)
    if table.row_count:
        out().print("\nTo be fetched, by `mlx-guarded pull` or when they are first used:")
        out().print(table)


def _table_of_fetched(entries: list[Entry]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("model", no_wrap=True, style="bold")
    table.add_column("from", style="dim", overflow="ellipsis")  # alone gives way
    for column in ("on disk", "context", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    for entry in entries:
        table.add_row(
            entry.name,
            "built in" if entry.kind == "builtin" else entry.location,
            "" if entry.size_bytes is None else size(entry.size_bytes),
            "" if entry.context_window is None else f"{entry.context_window:,}",
            "" if entry.memory_bytes is None else size(entry.memory_bytes),
            _fits(entry),
        )
    return table


def _fits(entry: Entry) -> Text:
    if entry.error:
        return Text("broken", style="red")
    return Text("yes", style="green") if entry.fits else Text("no", style="yellow")
