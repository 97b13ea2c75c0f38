"""How a notebook looks: the committed ones, as somebody else's, and what a cell draws."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .conftest import Lab, Notebook

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_that_somebody_else_ran(lab: Lab, path: Path, theme: str) -> None:
    shutil.copy(path, lab.folder)
    drawn = path.read_text(encoding="utf-8").count("<object")
    opened = lab.open(path.name, dark=theme == "dark", kernel=False, height=6000)
    page: Any = opened.page
    page.wait_for_function(
        "n => document.querySelectorAll('.jp-OutputArea img').length == n", arg=drawn
    )
    opened.shot(f"{path.stem}-{theme}")
    assert page.locator(".jp-RenderedHTML object, .jp-RenderedHTML svg").count() == 0
    broken = "imgs => imgs.filter(i => !i.complete || i.naturalWidth < 300).length"
    assert page.locator(".jp-OutputArea img").evaluate_all(broken) == 0
    wide = "all => all.filter(o => o.scrollWidth > o.clientWidth + 1).map(o => o.innerText)"
    assert page.locator(".jp-OutputArea-output").evaluate_all(wide) == []
    page.close()


BARS = """
import threading
from mlx_guarded_llm import Progress, ProgressBars
show, go_on = ProgressBars(delay=0), threading.Event()

def work(model, stage, total, until):
    show(Progress(stage, total // 2, total, model=model))
    show(Progress(stage, total // 2, total, model=model))
    go_on.wait()
    show(Progress(stage, until, total, model=model, over=True))

for each in [("llama-70b", "load", 40 * 10**9, 40 * 10**9), ("phi3", "pull", 10**9, 5 * 10**8)]:
    threading.Thread(target=work, args=each).start()
print("begun")
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_bars_without_widgets(lab: Lab, theme: str) -> None:
    from playwright.sync_api import expect

    opened = lab.open(
        lab.write(
            "bars.ipynb", BARS, "import ipywidgets", "import time; time.sleep(2.5); go_on.set()"
        ),
        dark=theme == "dark",
    )
    outputs = opened.run(0)
    expect(outputs).to_contain_text("20 GB of 40 GB")
    expect(outputs).to_contain_text("500 MB of 1 GB")
    opened.shot(f"bars-{theme}")
    expect(opened.run(1)).to_contain_text("ModuleNotFoundError")
    opened.run(2)
    expect(outputs).to_contain_text("load llama-70b · 40 GB in ")
    expect(outputs).to_contain_text("500 MB of 1 GB · stopped")
    opened.shot(f"bars-done-{theme}")
    opened.page.close()


TIMELINE = """
from mlx_guarded_llm.record import Event, timeline
events = [Event(kind, time, model="phi3", request_id="r1") for kind, time in [
    ("request.queued", 0), ("request.started", 1), ("request.first_token", 2),
    ("request.finished", 9)]]
timeline(events)
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_timeline_of_ones_own_has_tooltips_and_the_page_behind_it(lab: Lab, theme: str) -> None:
    from playwright.sync_api import expect

    opened = lab.open(lab.write("timeline.ipynb", TIMELINE), dark=theme == "dark")
    outputs = opened.run(0)
    expect(outputs.locator("object")).to_be_visible()
    opened.shot(f"timeline-{theme}")
    # The frames of an `object` are not those of Playwright, and its document is another origin's.
    tooltip = "r1: decode for 7.00 s"
    source = outputs.locator("object").get_attribute("data").partition(",")[2]
    assert tooltip in base64.b64decode(source).decode()
    assert background(opened, outputs.locator("object")) == background(
        opened, opened.page.locator(".jp-Notebook")
    )
    opened.page.close()


def background(opened: Notebook, place: Any) -> bytes:
    """The colour of the page at the lower right corner of something."""
    box = place.bounding_box()
    corner = {"x": box["x"] + box["width"] - 40, "y": box["y"] + box["height"] - 4}
    picture = opened.page.screenshot(clip={**corner, "width": 1, "height": 1})
    return Image.open(io.BytesIO(picture)).convert("RGB").tobytes()
