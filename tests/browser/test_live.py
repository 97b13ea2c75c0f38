"""What somebody sees and does in the live view."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.server._wait import until

from .conftest import ADMIN, EVIL, SOME, OpenPage, Site, shot

pytestmark = pytest.mark.timeout(300)
LOOKS = pytest.mark.parametrize("scheme", ["light", "dark"])
WIDTHS = pytest.mark.parametrize("width", [1280, 390])

Barriers = Callable[[Any], list[str]]


def shows(locator: Any, text: str) -> None:
    from playwright.sync_api import expect

    expect(locator).to_contain_text(text)


def row(page: Any, model: str) -> Any:
    return page.locator(".models tbody tr", has=page.get_by_role("rowheader", name=model))


def looks(page: Any, times: int = 2) -> None:
    """Let the page ask what is new."""
    for _ in range(times):
        with page.expect_response("**/live/now*"):
            pass


@LOOKS
@WIDTHS
def test_no_barriers(
    site: Site, open_page: OpenPage, barriers: Barriers, scheme: str, width: int
) -> None:
    with site.busy():
        page = open_page(site, scheme=scheme, width=width)
        waiting = page.get_by_role("region", name="Who waits for whom")
        shows(waiting, "waits for the load of paris")
        shows(row(page, "paris"), "deferred")
        shows(page.get_by_role("region", name="Requests"), "answering")
        page.get_by_text("The timeline as a table").click()
        looks(page)
        shot(page, f"busy-{scheme}-{width}")
        assert barriers(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        waiting.get_by_role("button", name="Story of").click()
        shows(page.locator("#story-text"), "asked for paris")
        shot(page, f"story-{scheme}-{width}")
        assert barriers(page) == []


@LOOKS
@WIDTHS
def test_no_barriers_where_a_key_is_asked_for(
    locked: Site, open_page: OpenPage, barriers: Barriers, scheme: str, width: int
) -> None:
    page = open_page(locked, scheme=scheme, width=width)
    page.get_by_label("Key").wait_for()
    shot(page, f"key-{scheme}-{width}")
    assert barriers(page) == []
    page.get_by_label("Key").fill(SOME)
    page.keyboard.press("Enter")
    row(page, "paris").wait_for()
    shot(page, f"some-{scheme}-{width}")
    assert barriers(page) == []


def test_a_click_on_the_chart_tells_a_story(site: Site, open_page: OpenPage) -> None:
    with site.busy():
        page = open_page(site)
        page.locator("#chart rect[data-request]").last.click()
        dialog = page.get_by_role("dialog")
        shows(dialog, "asked for")
        name = page.locator("#story-title").inner_text()
        assert page.locator(f'[data-story="{name}"]').count() == 1
        page.keyboard.press("Escape")
        dialog.wait_for(state="hidden")
        page.locator(f'[data-story="{name}"]').click()
        page.get_by_role("button", name="Close").click()
        assert page.evaluate("document.activeElement.dataset.story") == name


def test_a_story_goes_on(site: Site, open_page: OpenPage) -> None:
    with site.busy():
        page = open_page(site)
        page.get_by_role("region", name="Requests").locator("tbody [data-story]").first.click()
        shows(page.locator("#story-text"), "still generating")
        site.stop_all()
        shows(page.locator("#story-text"), "cancelled")


def test_loading_unloading_and_pinning(site: Site, open_page: OpenPage) -> None:
    site.client.post("/models/unload", json={"model": "paris"})
    page = open_page(site)
    paris = row(page, "paris")
    paris.get_by_role("button", name="Load paris").click()
    shows(page.get_by_role("status"), "Load asked for: paris.")
    shows(paris, "resident")
    assert site.state("paris")["state"] == "resident"
    paris.get_by_role("button", name="Pin paris", exact=True).click()
    shows(paris, "pinned")
    assert site.state("paris")["pinned"]
    paris.get_by_role("button", name="Unpin paris").click()
    paris.get_by_role("button", name="Pin paris", exact=True).wait_for()
    assert not site.state("paris")["pinned"]
    paris.get_by_role("button", name="Unload paris").click()
    shows(paris, "unloaded")
    assert site.state("paris")["state"] == "unloaded"


def test_cancelling(site: Site, open_page: OpenPage) -> None:
    with site.busy():
        page = open_page(site)
        requests = page.get_by_role("region", name="Requests")
        running = requests.locator("tr[data-state=answering]")
        running.get_by_role("button", name="Cancel").click()
        shows(requests.locator("tr[data-state=cancelled]").first, "rome")
        # Now Paris has its turn.
        shows(requests.locator("tr[data-state=finished]").first, "paris")
        until(lambda: not site.running())


def test_without_a_mouse(site: Site, open_page: OpenPage) -> None:
    site.client.post("/models/unload", json={"model": "paris"})
    page = open_page(site)
    # Before it is unloaded, no tab stop has this name.
    row(page, "paris").get_by_role("button", name="Load paris", exact=True).wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    for _ in range(20):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.textContent")
        if name == "Load paris":
            break
    assert name == "Load paris"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.evaluate("window.held = document.activeElement")
    looks(page)
    assert page.evaluate("window.held === document.activeElement")
    page.keyboard.press("Enter")
    # Its place is taken by the button that unloads, or the heading gets the focus.
    row(page, "paris").get_by_role("button", name="Unload paris").wait_for()
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)")
    assert page.evaluate("document.activeElement !== document.querySelector('main')")


def test_focus_and_folds_outlive_changes(site: Site, open_page: OpenPage) -> None:
    with site.busy():
        page = open_page(site)
        page.get_by_text("The timeline as a table").click()
        waiting = page.get_by_role("region", name="Who waits for whom")
        waiting.get_by_role("button", name="Story of").focus()
        name = page.evaluate("document.activeElement.dataset.story")
        looks(page)
        assert page.evaluate("document.activeElement.dataset.story") == name
        site.client.post("/guard/cancel", json={"request_id": name})
        # It waits no more: the focus goes with it to the list of requests.
        page.locator(f'.requests [data-story="{name}"]').wait_for()
        assert page.evaluate("document.activeElement.dataset.story") == name
        assert page.locator("details").get_attribute("open") is not None
        page.get_by_label("the last").select_option("1 minute")
        with page.expect_request("**/live/now?minutes=1&*"):
            pass
        assert page.get_by_label("the last").input_value() == "1"


def test_names_are_text(site: Site, open_page: OpenPage) -> None:
    page = open_page(site)
    row(page, EVIL).get_by_role("button", name="Load").click()
    shows(row(page, EVIL), "resident")
    looks(page)
    shows(page.locator("#chart"), "onerror")
    site.client.post(
        "/guard/call/generate",
        json={"model": EVIL, "prompt": "Where?", "request_id": EVIL, "options": {"max_tokens": 3}},
    )
    page.get_by_role("button", name=f"Story of {EVIL[:10]}").click()
    shows(page.locator("#story-title"), EVIL)
    shows(page.locator("#story-text"), f"Request {EVIL} asked for {EVIL}")
    assert page.locator("img").count() == 0  # and `open_page` sees whether anything ran


def test_a_key(locked: Site, open_page: OpenPage) -> None:
    asked: list[str] = []
    page = open_page(locked)
    page.on("request", lambda request: asked.append(request.url))
    key = page.get_by_label("Key")
    assert page.evaluate("document.activeElement.id") == "key"
    key.fill("wrong")
    page.keyboard.press("Enter")
    shows(page.get_by_role("status"), "the key is not known here")
    assert page.get_by_role("region", name="Models").count() == 0
    key.fill(SOME)
    page.keyboard.press("Enter")
    shows(page.get_by_role("region", name="Models"), "This key sees its models")
    assert page.get_by_role("button", name="Load").count() == 0
    assert page.get_by_text("rome").count() == 0
    page.get_by_role("button", name="Forget the key").click()
    assert page.get_by_role("region", name="Models").count() == 0
    key.fill(ADMIN)
    page.get_by_role("button", name="Show").click()
    row(page, "rome").get_by_role("button", name="Load rome").click()
    shows(row(page, "rome"), "resident")
    assert page.evaluate("Object.values(sessionStorage)") == [ADMIN]
    assert page.evaluate("localStorage.length") == 0 and page.context.cookies() == []
    page.reload()  # the same tab
    row(page, "rome").wait_for()
    assert not [url for url in asked if ADMIN in url or SOME in url]
    page.get_by_role("button", name="Forget the key").click()
    page.reload()
    key.wait_for()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_hidden_page_asks_nothing(site: Site, open_page: OpenPage) -> None:
    page = open_page(site)
    looks(page)
    hide = """hidden => {
        Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(5000)  # milliseconds; more than two of its periods
    assert not asked
    page.evaluate(hide, False)
    looks(page)


def test_the_server_is_killed_and_comes_back(make_site: Callable[[], Site], open_page: Any) -> None:
    site = make_site()
    page = open_page(site)
    row(page, "paris").get_by_role("button", name="Load paris").click()
    shows(row(page, "paris"), "resident")
    row(page, "paris").get_by_role("button", name="Unload paris").focus()
    site.kill()
    shows(page.get_by_role("status"), "The server does not answer.")
    shot(page, "gone")
    assert page.evaluate("document.activeElement.dataset.do") == "unload"
    restarted = threading.Thread(target=site.start)
    restarted.start()
    shows(page.get_by_role("status"), "The server answers again.")
    shows(row(page, "paris"), "unloaded")
    restarted.join()
