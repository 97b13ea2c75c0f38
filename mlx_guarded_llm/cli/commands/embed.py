"""`mlx-guarded embed`: vectors of texts."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from ...errors import InvalidRequest
from .. import arguments, backends
from ..console import write


def embed(
    model: arguments.Model,
    texts: Annotated[
        list[str],
        typer.Argument(
            help='Texts; "-" reads one from each line of stdin.',
            metavar="TEXT...",
            show_default=False,
        ),
    ],
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut texts that are longer than its window.")
    ] = False,
    timeout: arguments.Timeout = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one object, with usage and guard.")
    ] = False,
    revision: arguments.Revision = None,
    context_window: arguments.ContextWindow = None,
    load_wait: arguments.LoadWait = None,
    memory_budget: arguments.MemoryBudget = None,
    url: arguments.Url = None,
    local: arguments.Local = False,
) -> None:
    """Make a vector of each text: a line of JSON for each.

    [dim]mlx-guarded embed all-minilm-l6-v2 "What is the capital of France?"
    mlx-guarded embed all-minilm-l6-v2 - < lines.txt > vectors.jsonl[/dim]
    """
    from ..progress import ProgressLine  # late, as rich.progress is slow to import

    asked = sys.stdin.read().splitlines() if texts == ["-"] else texts
    if not asked:
        raise InvalidRequest("there is no text.", hint='Give one, or "-" and lines on stdin.')
    options = arguments.given(timeout=timeout, revision=revision, context_window=context_window)
    with (
        ProgressLine(model) as progress,
        backends.open_backend(
            url=url, local=local, load_wait=load_wait, memory_budget=memory_budget
        ) as backend,
    ):
        found = backend.embed(
            model, asked, truncate=truncate, on_progress=progress.update, **options
        )
    # The shortest number that is the same float32.
    rows = [[float(str(value)) for value in row] for row in found.vectors]
    if as_json:
        usage = {"prompt_tokens": found.usage.prompt_tokens}
        whole = {"vectors": rows, "usage": usage, "guard": found.guard.as_dict()}
        write(json.dumps(whole, ensure_ascii=False) + "\n")
        return
    for row in rows:
        write(json.dumps(row) + "\n")
