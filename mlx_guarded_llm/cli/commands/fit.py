"""`mlx-guarded fit`: which models fit into memory together, before any is downloaded."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ...errors import GuardedLLMError, InvalidRequest
from ...record.phrases import listing, size
from .. import arguments, reporting
from ..console import harmless, out, say, short, write
from ..machine import another_mac, this_machine
from ..shell_completion import model_names

if TYPE_CHECKING:
    from ...memory.budget import MemoryLimits
    from ...memory.fit import Fit
    from ...models import ModelFiles

_KV_BITS = (8, 4)


def fit(
    model: Annotated[
        list[str],
        typer.Argument(
            help="Aliases, folders or Hugging Face repositories.",
            metavar="MODEL...",
            show_default=False,
            autocompletion=model_names,
        ),
    ],
    context: Annotated[
        int, typer.Option(min=1, help="Tokens of each request: its prompt and its answer.")
    ] = 4096,
    memory: Annotated[
        str | None,
        typer.Option(
            help='Of a Mac with this much memory, such as "64GB", instead of this machine.',
            show_default=False,
            rich_help_panel=arguments.GUARD,
        ),
    ] = None,
    memory_budget: arguments.MemoryBudget = None,
    as_json: arguments.AsJson = False,
) -> None:
    """Tell whether models fit into memory together, before any is downloaded.

    Of a model that is not on the disk only the settings and the headers of the
    weights are read. The sums are those by which a backend refuses and evicts.

    The exit code is 0 if all of them fit together, otherwise 1.

    [dim]mlx-guarded fit llama-70b phi3-mini --context 8192
    mlx-guarded fit llama-70b phi3-mini --memory 64GB
    mlx-guarded fit ./my-model[kv_bits=8] --json | jq .together.fits[/dim]
    """
    if memory is not None and memory_budget is not None:
        raise InvalidRequest(
            "--memory is that of a whole machine, and --memory-budget what models may use.",
            hint="Give one of the two.",
        )
    machine = this_machine(memory_budget) if memory is None else another_mac(memory)
    sized, errors = _sizes(model)
    found = _found(sized, errors, machine, context, measured=memory is None)
    if as_json:
        write(json.dumps(found, indent=2) + "\n")
    else:
        _show(found, machine, memory)
    if errors or not found["together"]["fits"]:
        raise typer.Exit(reporting.FAILED)


def _sizes(names: list[str]) -> tuple[dict[str, ModelFiles], dict[str, GuardedLLMError]]:
    """The models whose sizes can be told, and why those of the others cannot."""
    from ...models import Catalog

    catalog = Catalog()
    sized, errors = {}, {}
    for name in names:
        try:
            with out().status(f"looking at {harmless(short(name))}"):
                sized[name] = catalog.outline(catalog.resolve(name))
        except InvalidRequest:
            raise
        except GuardedLLMError as error:
            errors[name] = error
    return sized, errors


def _found(
    sized: dict[str, ModelFiles],
    errors: dict[str, GuardedLLMError],
    machine: MemoryLimits,
    context: int,
    *,
    measured: bool,
) -> dict[str, Any]:
    """All that is told, as JSON has it."""
    from ...memory.corrections import Corrections
    from ...memory.fit import Fit
    from ...models.catalog import cache_folder

    corrections = Corrections(cache_folder() / "measured.json") if measured else None
    fit = Fit(sized, machine, corrections)
    models: list[dict[str, Any]] = []
    for name, files in sized.items():
        need = fit.need(name, context)
        fits = need.needed_bytes <= fit.room
        window = files.context_window
        numbers = {**asdict(need), "needed_bytes": need.needed_bytes, "context_window": window}
        models.append({"name": name, **numbers, "fits": fits})
    models += [
        {"name": name, "error": error.message, "hint": error.hint, "docs": error.docs}
        for name, error in errors.items()
    ]
    together = fit.together(context) if sized else 0
    fits = not errors and together <= fit.room
    return {
        "context": context,
        "budget_bytes": machine.budget_bytes,
        "prefix_cache_bytes": machine.prefix_cache_bytes,
        "models": models,
        "together": {"needed_bytes": together, "fits": fits},
        "least_budget_bytes": fit.budget_for(context) if sized else 0,
        "longest_context": fit.longest_context(fit.widest_window()) if sized else 0,
        "kv_bits_that_fit": _kv_bits(fit, context) if sized and not fits else None,
    }


def _kv_bits(fit: Fit, context: int) -> int | None:
    """The most bits of KV caches with which all fit."""
    return next((n for n in _KV_BITS if fit.with_kv_bits(n).together(context) <= fit.room), None)


def _show(found: dict[str, Any], machine: MemoryLimits, memory: str | None) -> None:
    known = [entry for entry in found["models"] if "error" not in entry]
    if known:
        out().print(_table(found, known))
        whose = "this machine" if memory is None else f"a Mac with {memory}"
        say(
            out(),
            Text(
                f"The budget of {whose} is {size(machine.budget_bytes)}, of which "
                f"{size(machine.prefix_cache_bytes)} are for the prefix cache.",
                style="dim",
            ),
        )
        for line in _words(found, known, machine):
            say(out(), line)
    for entry in found["models"]:
        if "error" in entry:
            reporting.show_error(f"{entry['name']}: {entry['error']}", entry["hint"], entry["docs"])


def _table(found: dict[str, Any], known: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("model", overflow="fold", style="bold")
    for column in ("context", "weights", "KV cache", "head room", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("fits", no_wrap=True)
    for entry in known:
        parts = [entry[f"{part}_bytes"] for part in ("weight", "kv", "step", "needed")]
        table.add_row(
            harmless(short(entry["name"])),
            f"{entry['context']:,}",
            *map(size, parts),
            _yes(entry["fits"]),
        )
    if len(known) > 1:
        together = found["together"]
        needed = size(together["needed_bytes"])
        fits = together["needed_bytes"] <= found["budget_bytes"] - found["prefix_cache_bytes"]
        table.add_row("together", "", "", "", "", needed, _yes(fits), style="bold")
    return table


def _yes(fits: bool) -> Text:
    return Text("yes", style="green") if fits else Text("no", style="yellow")


def _words(found: dict[str, Any], known: list[dict[str, Any]], machine: MemoryLimits) -> list[str]:
    """What it means, and what would make it fit."""
    room = machine.budget_bytes - machine.prefix_cache_bytes
    needed, context = found["together"]["needed_bytes"], found["context"]
    longest = found["longest_context"]
    several = len(known) > 1
    lines = [
        f"{harmless(short(entry['name']))} takes at most {entry['context_window']:,} tokens, so no "
        "more are counted for it."
        for entry in known
        if entry["context"] < context
    ]
    if needed <= room:
        what = "All fit together" if several else "It fits"
        unknown = [harmless(short(e["name"])) for e in found["models"] if "error" in e]
        without = f"Without {listing(unknown)}: " if unknown else ""
        return [*lines, f"{without}{what}, up to {longest:,} tokens of context."]
    lines.append(
        f"{'Together they do' if several else 'It does'} not fit: {size(needed - room)} too much. "
        f"What would make {'them' if several else 'it'} fit:"
    )
    if longest:
        fits = "they fit" if several else "it fits"
        lines.append(f"- a shorter context: {fits} with {longest:,} tokens.")
    if found["kv_bits_that_fit"]:
        bits = found["kv_bits_that_fit"]
        lines.append(f"- a quantised KV cache: kv_bits={bits}, as in NAME[kv_bits={bits}].")
    alone = [entry for entry in known if entry["fits"]]
    if several and len(alone) == len(known):
        lines.append(
            "- nothing, if they take turns: each fits alone. The idle one is evicted when another "
            f"is asked, and read anew when it is asked again: {_read_anew(known)}."
        )
    never = [harmless(short(entry["name"])) for entry in known if not entry["fits"]]
    if never:
        lines.append(
            f"- fewer bits of weights, or a smaller model: {listing(never)} "
            f"do{'es' * (len(never) == 1)} not fit even alone."
        )
    lines.append(f"- a larger budget: {size(found['least_budget_bytes'])}.")
    return lines


def _read_anew(known: list[dict[str, Any]]) -> str:
    return listing(f"{size(e['weight_bytes'])} of {harmless(short(e['name']))}" for e in known)
