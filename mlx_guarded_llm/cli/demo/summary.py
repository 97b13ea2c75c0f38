"""What the demo says at its end, all of it from the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ...record import Timeline, overlaps, render_text
from ...record.phrases import counted, listing, rate, seconds
from .. import reporting
from ..console import out, say, short
from ..record_summary import overlap_lines, story

if TYPE_CHECKING:
    from .scene import Part


def show_report(timeline: Timeline, parts: Sequence[Part], seen: Mapping[str, int]) -> bool:
    """Print the timeline, the story, the verdict and each answer's guard.

    Args:
        timeline: of the whole demo.
        parts: the requests with their results.
        seen: how many sections of each kind the witness saw.

    Returns:
        Whether both answered, nothing overlapped and the witness saw it.
    """
    out().print()
    out().print(Rule("what happened", style="dim"))
    out().print(render_text(timeline))
    out().print()
    for sentence in story(timeline.histories):
        say(out(), sentence)
    overlapped = bool(overlaps(timeline))
    for sentence in overlap_lines(timeline):
        say(out(), Text(sentence, style="bold red" if overlapped else "bold green"))
    watched = bool(seen.get("step") and seen.get("load"))
    say(out(), _witness(seen, watched=watched))
    out().print()
    out().print(_guards(parts))
    for part in parts:
        if part.error is not None:
            reporting.show_error(f"{part.label}: {part.error.message}", part.error.hint)
    answered = all(part.result is not None for part in parts)
    return answered and watched and not overlapped


def _witness(seen: Mapping[str, int], *, watched: bool) -> Text:
    if not watched:
        return Text("The witness saw no load beside a generation, so this shows nothing.", "red")
    kinds = {"load": "load", "step": "generation step", "unload": "unload", "foreign": "other work"}
    counts = listing(counted(seen[kind], noun) for kind, noun in kinds.items() if seen.get(kind))
    return Text(
        f"A witness watched {counts} in the engine's process. It aborts at the first overlap; "
        "none of them did."
    )


def _guards(parts: Sequence[Part]) -> Table:
    """Each answer's `guard`: who served it, and what it waited for."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    table.add_column("served by", overflow="fold")
    for column in ("tokens", "speed", "queued", "deferred", "loading", "paused"):
        table.add_column(column, justify="right", no_wrap=True)
    for part in parts:
        result = part.result
        if result is None:
            table.add_row(part.label, Text("no answer", style="red"))
            continue
        guard, tokens = result.guard, result.usage.completion_tokens
        times = (guard.queued, guard.deferred, guard.loading, guard.paused)
        table.add_row(
            part.label,
            short(guard.served_model),
            str(tokens),
            rate(tokens - 1, guard.decoding).removesuffix(" tokens/s") + "/s",
            *map(seconds, times),
        )
    return table
