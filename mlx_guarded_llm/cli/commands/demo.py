"""`mlx-guarded demo`: the incident on two real models, with the guard and without it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .. import arguments, backends, reporting
from ..console import err, out, say, short

MODEL_A = "smollm2-135m"
MODEL_B = "smollm2-135m-bf16"
PROMPT_A = "Explain to a child, step by step, why the sky is blue and the sunset is red."
PROMPT_B = "Name three planets and say one sentence about each."


def demo(
    naive: Annotated[
        bool, typer.Option("--naive", help="The same without the guard; it dies.")
    ] = False,
    model_a: Annotated[str, typer.Option(help="The model that is answering.")] = MODEL_A,
    model_b: Annotated[str, typer.Option(help="The model whose load comes in between.")] = MODEL_B,
    max_tokens: Annotated[
        int, typer.Option(min=6, help="Tokens of the first answer; the second gets a third.")
    ] = 144,
    load_wait: Annotated[
        float, typer.Option(help="Seconds the load waits before the answer pauses.")
    ] = 5.0,
    memory_budget: arguments.MemoryBudget = None,
    trace: arguments.Trace = None,
) -> None:
    """Replay the incident: a model is loaded while another one answers.

    One third into the first answer a second request needs another model.
    Its load is deferred; after --load-wait seconds the answer pauses between
    two tokens, the model is loaded, and both go on. A witness would abort the
    process if a load overlapped a generation. It takes a minute or two; the
    first time two models (370 MB) are made.

    [dim]mlx-guarded demo
    mlx-guarded demo --naive           the server of the incident: it dies
    mlx-guarded demo --load-wait 120   the load waits for the whole answer[/dim]
    """
    # Late, so that `mlx-guarded --help` stays quick.
    from ..demo.boards import LineBoard, PanelBoard
    from ..demo.naive import show_naive
    from ..demo.scene import Part, play
    from ..demo.summary import show_report
    from ..progress import fetch

    folders = [fetch(model).path for model in (model_a, model_b)]
    if naive:
        died = show_naive(folders[0], folders[1], PROMPT_A, max_tokens, trace)
        if trace is not None:
            _wrote(trace)
        raise typer.Exit(0 if died else reporting.FAILED)
    _intro(model_a, model_b, max_tokens, load_wait)
    parts = (
        Part(label="A", model=model_a, prompt=PROMPT_A, max_tokens=max_tokens),
        Part(label="B", model=model_b, prompt=PROMPT_B, max_tokens=max_tokens // 3),
    )
    board = PanelBoard if out().is_terminal else LineBoard
    with (
        watched(),
        backends.open_backend(
            local=True, load_wait=load_wait, memory_budget=memory_budget
        ) as backend,
    ):
        with board(parts, out()) as shown:
            interrupted = play(backend, parts, shown, after=max_tokens // 3)
        timeline = backend.timeline()
        if trace is not None:
            backend.write_trace(trace)
        sections = backend.run(seen)
    fine = show_report(timeline, parts, sections)
    if trace is not None:
        _wrote(trace)
    if interrupted:
        raise typer.Exit(reporting.CANCELLED)
    if not fine:
        raise typer.Exit(reporting.FAILED)


@contextmanager
def watched() -> Iterator[None]:
    """Have the engine put a witness over all MLX work of its process.

    The engine does so on its own thread, at its first report.
    """
    from ...engine.observer import WITNESS_VARIABLE

    os.environ[WITNESS_VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[WITNESS_VARIABLE]


def seen() -> Mapping[str, int]:
    """How many sections of each kind the witness of the engine's process saw.

    Without the section in which the demo itself asks for them.
    """
    from ...engine.observer import process_observer

    sections = dict(getattr(process_observer(), "seen", {}))
    sections.pop("foreign", None)
    return sections


def _intro(model_a: str, model_b: str, max_tokens: int, load_wait: float) -> None:
    say(
        out(),
        f"A asks {short(model_a)} for {max_tokens} tokens. After {max_tokens // 3} of them B "
        f"needs {short(model_b)}, which is not in memory. Its load waits {load_wait:g} s for A; "
        "then A pauses between two tokens, the model is loaded, and both go on.\n",
    )


def _wrote(trace: Path) -> None:
    text = f"The trace is in {trace}: `mlx-guarded trace {trace}`, or open it in ui.perfetto.dev."
    say(err(), text)
