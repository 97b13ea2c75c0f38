"""Draw docs/images/incident.svg from two records of `mlx-guarded demo`; see `make picture`."""

from __future__ import annotations

from pathlib import Path

from mlx_guarded_llm.record import Event, Timeline, read_perfetto, timeline, write_svg

IMAGES = Path(__file__).parent / "images"
SCENES = {
    "naive": "Without a guard: the load begins at once, beside the answer, and the process dies",
    "guarded": "With the guard: the load waits, the answer pauses between two tokens, "
    "and both answers are whole",
}


def draw(path: Path = IMAGES / "incident.svg") -> Path:
    """Draw both scenes on one scale, from the moment at which the answer begins."""
    records = {
        title: read_perfetto(IMAGES / f"incident-{name}.json") for name, title in SCENES.items()
    }
    seconds = max(events[-1].time - begin(events) for events in records.values())
    return write_svg({title: scene(events, seconds) for title, events in records.items()}, path)


def scene(events: list[Event], seconds: float) -> Timeline:
    """The timeline of a record without the start of its server."""
    return timeline(events, since=begin(events), until=begin(events) + seconds)


def begin(events: list[Event]) -> float:
    """When the first answer began to be generated."""
    return next(event.time for event in events if event.kind == "request.first_token")


if __name__ == "__main__":
    draw()
