"""The timeline drawn: bars in a terminal, an SVG in a notebook."""

from __future__ import annotations

import base64
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from mlx_guarded_llm.record import Event, render_text, timeline, write_svg
from mlx_guarded_llm.record.chart import tick_label, ticks
from mlx_guarded_llm.record.chart_svg import render_svg

from .incidents import BIG, PHI, ZERO, at, crash, crowd, incident

SVG = "{http://www.w3.org/2000/svg}"


def _drawn(events: list[Event], width: int, *, ask: int | None = None) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(render_text(timeline(events), width=ask))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_ipython_gets_the_chart_as_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    shown: list[str] = []
    timeline(incident())._repr_pretty_(SimpleNamespace(text=shown.append), False)
    assert [line.rstrip() for line in shown[0].splitlines()] == _drawn(incident(), 100)


def test_the_incident_as_text() -> None:
    big, phi, *rest = _drawn(incident(), 90)
    assert big.startswith(f"{BIG} ▒█r1███")
    assert phi.startswith(f"{PHI:>{len(BIG)}}  ")
    # The pause stands exactly over the load that caused it.
    assert big.index("╌") == phi.index("▓")
    assert phi.index("░") > big.index("▒")
    assert rest[0].lstrip().startswith("┌──")
    assert rest[1].split() == ["0", "s", "50", "s", "100", "s", "150", "s", "200", "s"]
    assert rest[2].split("  ")[-5:] == [
        "░░ deferred",
        "▒▒ prefill",
        "██ decode",
        "╌╌ paused",
        "▓▓ loading",
    ]


@pytest.mark.parametrize("width", [20, 40, 61, 80, 137])
@pytest.mark.parametrize(
    "events", [incident(), crowd(), crash()], ids=["incident", "crowd", "crash"]
)
def test_it_fits_the_width(events: list[Event], width: int) -> None:
    assert all(len(line) <= width for line in _drawn(events, width))
    assert all(len(line) <= width for line in _drawn(events, 200, ask=width))


def test_a_blink_of_a_load_is_seen() -> None:
    events = [
        *incident(),
        at(201, "load.started", "tiny", job="j9"),
        at(201, "load.finished", "tiny", job="j9"),
    ]
    assert any("▓" in line for line in _drawn(events, 60) if "tiny" in line)


def test_failures_and_cancels_have_signs() -> None:
    lines = _drawn(crowd(), 80)
    assert sum("✗" in line for line in lines[:-1]) == 1
    assert sum("○" in line for line in lines[:-1]) == 2


def test_a_dead_engine_is_told() -> None:
    assert any("the engine failed at 91.0 s: SIGABRT" in line for line in _drawn(crash(), 100))


def test_a_long_name_keeps_its_end_and_a_crowd_is_cut() -> None:
    name = "/Users/somebody/models/mlx-community/SmolLM2-135M-Instruct-4bit"
    events = [at(0, "request.started", name, f"r{n}") for n in range(20)]
    lines = _drawn([*events, at(9, "request.finished", name, "r0")], 80)
    assert lines[0].startswith("…")
    assert lines[0].split()[0].endswith("135M-Instruct-4bit")
    assert lines[8].strip() == "and 12 more at once"


def test_nothing_to_draw() -> None:
    assert _drawn([], 80) == ["Nothing was recorded."]
    assert "Nothing was recorded" in timeline([])._repr_html_()


def test_a_timeline_prints_itself() -> None:
    console = Console(width=90, color_system=None)
    with console.capture() as capture:
        console.print(timeline(incident()))
    assert capture.get().rstrip().splitlines()[0].startswith(BIG)


def _svg(events: list[Event]) -> ET.Element:
    return ET.fromstring(render_svg(timeline(events)))


def test_the_incident_as_a_picture() -> None:
    svg = _svg(incident())
    titles = [title.text or "" for title in svg.iter(f"{SVG}title")]
    assert f"load of {PHI}: loading for 2.50 s, from 176 s to 178 s" in titles
    assert f"load of {PHI}: deferred for 120 s, from 56.0 s to 176 s, behind r1 ({BIG})" in titles
    assert all(float(rect.get("width", "0")) > 0 for rect in svg.iter(f"{SVG}rect"))
    assert "currentColor" in (svg.get("fill") or "")  # the page's own, dark or light


def test_a_notebook_gets_a_picture_that_survives_where_only_plain_html_does() -> None:
    shown = ET.fromstring(timeline(incident())._repr_html_())
    assert (shown.tag, [child.tag for child in shown]) == ("object", ["img"])
    (still,) = shown
    assert not "".join(shown.itertext()), "it would be left as words"
    assert shown.get("data") == still.get("src") and "1 model" not in (still.get("alt") or "")
    kind, _, data = (still.get("src") or "").partition(",")
    assert kind == "data:image/svg+xml;base64"
    svg = ET.fromstring(base64.b64decode(data))
    assert svg.get("color"), "the page's own colour does not reach it"
    assert BIG in [text.text for text in svg.iter(f"{SVG}text")]


@pytest.mark.parametrize("width", [240, 358, 960, 1400])
def test_a_live_picture(width: int) -> None:
    svg = ET.fromstring(render_svg(timeline(incident()), width=width, live=True))
    assert svg.get("width") == str(width)
    assert "style" not in {name for element in svg.iter() for name in element.attrib}
    assert {rect.get("data-request") for rect in svg.iter(f"{SVG}rect")} >= {"r1", "r2"}
    labels = [text.text or "" for text in svg.iter(f"{SVG}text")]
    assert "now" in labels and any(label.startswith("\N{MINUS SIGN}") for label in labels)
    height = float(svg.get("height", "0"))
    for rect in svg.iter(f"{SVG}rect"):
        assert float(rect.get("x", "0")) + float(rect.get("width", "0")) <= width
        assert float(rect.get("y", "0")) + float(rect.get("height", "0")) <= height
    titles = [title.text or "" for title in svg.iter(f"{SVG}title")]
    assert any(title.startswith(f"load of {PHI}: loading for 2.50 s, begun ") for title in titles)


def test_a_live_picture_of_a_crowd_is_cut_off_and_one_of_nothing_has_an_axis() -> None:
    events = [at(0, "request.started", PHI, f"r{n}") for n in range(50)]
    failed = [at(1, "request.failed", PHI, f"r{n}", cause="no") for n in range(50)]
    picture = render_svg(timeline([*events, *failed]), live=True)
    assert "and 38 more at once" in picture
    assert len(picture) < len(render_svg(timeline([*events, *failed]))) / 2
    nothing = timeline([], since=ZERO, until=ZERO + 60)
    assert "now" in [
        t.text for t in ET.fromstring(render_svg(nothing, live=True)).iter(f"{SVG}text")
    ]


def test_names_cannot_break_out_of_the_picture() -> None:
    evil = "<script>alert('x')</script>&\""
    events = [
        at(0, "request.queued", evil, evil, behind=((evil, evil),)),
        at(1, "request.started", evil, evil),
        at(2, "request.first_token", evil, evil),
        at(3, "request.paused", evil, evil, cause=evil),
        at(4, "request.failed", evil, evil, cause=evil),
        at(5, "engine.failed", cause=evil),
    ]
    for html in (render_svg(timeline(events)), render_svg(timeline(events), live=True)):
        assert "<script" not in html
        svg = ET.fromstring(html)
        assert any(evil in (text.text or "") for text in svg.iter(f"{SVG}title"))


def test_a_picture_of_its_own_has_every_timeline_and_a_background(tmp_path: Path) -> None:
    scenes = {"a & b": timeline(crash()), "with the guard": timeline(incident())}
    path = write_svg(scenes, tmp_path / "both.svg")
    svg = ET.fromstring(path.read_bytes())
    words = [text.text for text in svg.iter(f"{SVG}text")]
    assert words.index("a & b") < words.index("with the guard")
    assert words.count(BIG) == 2
    page = next(svg.iter(f"{SVG}rect"))
    assert (page.get("width"), page.get("height")) == (svg.get("width"), svg.get("height"))
    assert "prefers-color-scheme" in path.read_text()


def test_the_picture_in_the_readme_is_that_of_its_records(tmp_path: Path) -> None:
    docs = Path(__file__).parents[3] / "docs"
    draw = runpy.run_path(str(docs / "draw_incident.py"))["draw"]
    drawn = draw(tmp_path / "incident.svg").read_text()
    assert drawn == (docs / "images" / "incident.svg").read_text(), "make picture ARGS=redraw"


def test_control_characters_cannot_break_the_picture() -> None:
    _svg([at(0, "request.started", "a\x00b\x1b", "r\x01"), at(1, "engine.failed", cause="\x02")])


def test_thousands_of_short_requests_stay_a_small_picture() -> None:
    events = []
    for n in range(20_000):
        events += [
            at(n, "request.started", PHI, f"r{n}"),
            at(n + 0.5, "request.first_token", PHI, f"r{n}"),
            at(n + 1, "request.finished", PHI, f"r{n}"),
        ]
    assert len(timeline(events)._repr_html_()) < 500_000


@pytest.mark.parametrize(
    ("seconds", "most", "labels"),
    [
        (200, 6, ["0 s", "50 s", "100 s", "150 s", "200 s"]),
        (0.35, 5, ["0 s", "0.1 s", "0.2 s", "0.3 s"]),
        (1, 2, ["0 s", "1 s"]),
        (0, 5, ["0 s"]),
    ],
)
def test_ticks_are_round(seconds: float, most: int, labels: list[str]) -> None:
    assert [tick_label(tick) for tick in ticks(seconds, most)] == labels


def test_the_record_is_light_to_import() -> None:
    code = (
        "import sys, mlx_guarded_llm.record; "
        "sys.exit(any(m in sys.modules for m in ('mlx', 'mlx_lm', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
