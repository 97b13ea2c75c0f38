"""The live view as HTML: what it shows, to whom, and that nothing in it is more than text."""

from __future__ import annotations

import re
import threading
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import httpx
import pytest

from mlx_guarded_llm.record import Event, Kind
from mlx_guarded_llm.server.live import view
from mlx_guarded_llm.server.live.pages import FILES, HERE, Shown, _templates
from mlx_guarded_llm.server.security import OPEN_PATHS
from tests.conftest import MakeModel

from ._wait import until
from .conftest import ANSWER, Running, Serve

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
KEYS = {
    "ops": {"key": "o-secret", "admin": True},
    "alice": {"key": "a-secret", "models": ["paris"]},
}
EVIL = "<img src=x onerror=alert(1)>\"'&{{7*7}}"


class Page(HTMLParser):
    """The tags of a page, with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def actions(self) -> set[tuple[str | None, str | None]]:
        return {(a.get("data-do"), a.get("data-to")) for _, a in self.tags if "data-do" in a}


def ask(running: Running, model: str = "paris", key: str = "", **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Where?"}], **more}
    return running.client.post("/v1/chat/completions", json=body, headers={"x-api-key": key})


def now(running: Running, key: str = "", **query: Any) -> Page:
    reply = running.client.get("/live/now", params=query, headers={"x-api-key": key})
    assert reply.status_code == 200, reply.text
    return Page(reply.text)


def test_without_keys_the_page_has_all(paris: Running) -> None:
    name = ask(paris).headers["x-guard-request-id"]
    reply = paris.client.get("/", headers=BROWSER)
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/html")
    page = Page(reply.text)
    assert {"Models", "Who waits for whom", "Timeline", "Requests"} <= set(page.text.split("\n"))
    assert page.actions() == {("unload", "paris"), ("pin", "paris")}
    assert any(tag == "svg" and "data-request" in str(reply.text) for tag, _ in page.tags)
    (story,) = {a["data-story"] for _, a in page.tags if "data-story" in a}
    assert story == name
    assert "finished" in page.text


def test_programs_get_no_page(paris: Running) -> None:
    reply = paris.client.get("/")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("path", ["/", "/live/now", *FILES])
def test_the_policy_lets_nothing_in(paris: Running, path: str) -> None:
    reply = paris.client.get(path, headers=BROWSER)
    assert reply.status_code == 200
    policy = dict(
        part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] in ("no-store", "no-cache")


def test_nothing_is_inline_or_elsewhere(paris: Running) -> None:
    ask(paris)
    reply = paris.client.get("/", headers=BROWSER)
    for tag, attributes in Page(reply.text).tags:
        assert "style" not in attributes and not [a for a in attributes if a.startswith("on")]
        for name in ("src", "href", "action"):
            assert not re.match(r"\w+:|//", attributes.get(name) or "")
        assert tag != "style" and (tag != "script" or attributes.get("src") == "live/live.js")
    for path in FILES:
        text = paris.client.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]", text) and "innerHTML" not in text


def test_the_files_are_there() -> None:
    assert set(FILES) < set(OPEN_PATHS)
    package = files("mlx_guarded_llm.server.live")
    for path in FILES:
        assert package.joinpath("static", path.rpartition("/")[2]).is_file()
    assert {path.name for path in (HERE / "templates").iterdir()} == {
        "page.html",
        "now.html",
        "parts.html",
    }


@pytest.fixture
def locked(serve: Serve, scripted: MakeModel) -> Running:
    return serve(models={"paris": scripted(ANSWER), "rome": scripted("Rome.")}, keys=KEYS)


def test_with_keys_the_page_has_no_data(locked: Running) -> None:
    ask(locked, key="o-secret")
    for headers in (BROWSER, BROWSER | {"authorization": "Bearer o-secret"}):
        reply = locked.client.get("/", headers=headers)
        assert reply.status_code == 200
        assert "paris" not in reply.text and "<section" not in reply.text
        assert "This server needs a key" in reply.text
    for headers in ({}, {"authorization": "Bearer wrong"}):
        assert locked.client.get("/live/now", headers=headers).status_code == 401
    assert locked.client.get("/live/live.js").status_code == 200


def test_a_key_of_some_models_sees_them_and_no_requests(locked: Running) -> None:
    name = ask(locked, key="o-secret").headers["x-guard-request-id"]
    ask(locked, "rome", key="o-secret")
    page = now(locked, "a-secret")
    assert "paris" in page.text and "rome" not in page.text
    assert not page.actions() and name[:12] not in page.text and "Timeline" not in page.text
    whole = now(locked, "o-secret")
    assert ("unload", "rome") in whole.actions() and name[:12] in whole.text
    headers = {"x-api-key": "a-secret"}
    body = {"request_id": name}
    assert locked.client.post("/guard/cancel", json=body, headers=headers).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "https://evil.example"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_pages_of_other_sites_get_nothing(paris: Running, headers: dict[str, str]) -> None:
    for path in ("/", "/live/now"):
        assert paris.client.get(path, headers=BROWSER | headers).status_code == 403
    body = {"request_id": "x"}
    assert paris.client.post("/guard/cancel", json=body, headers=headers).status_code == 403


def test_a_running_answer_is_seen_and_cancelled(serve: Serve, scripted: MakeModel) -> None:
    model = {"model": scripted("Rome. ", context_window=65536, loop=True), "max_tokens": 60000}
    running = serve(models={"paris": model}, keys=KEYS)
    replies: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: replies.append(ask(running, key="a-secret")))
    asking.start()
    until(lambda: re.search(r"answering[\s\S]*[1-9]", now(running, "o-secret").text))
    until(lambda: running.backend.health().tokens)
    (name,) = running.backend.health().tokens
    until(lambda: re.search(r"[1-9][\d.e+]* tokens/s in all", now(running, "o-secret").text))
    assert ("cancel", name) in now(running, "o-secret").actions()
    # Which answers run, only admins hear.
    for key in ("a-secret", "o-secret"):
        asked = running.client.post("/guard/call/health", json={}, headers={"x-api-key": key})
        assert (name in asked.text) == (key == "o-secret")
    admin = {"x-api-key": "o-secret"}
    done = running.client.post("/guard/cancel", json={"request_id": name}, headers=admin)
    assert done.json() == {"success": True}
    asking.join()
    assert replies[0].status_code == 200
    until(lambda: "cancelled" in now(running, "o-secret").text)
    gone = running.client.post("/guard/cancel", json={"request_id": "nobody"}, headers=admin)
    assert gone.status_code == 404
    story = running.client.get("/guard/requests/a%2Fb", headers=admin)
    assert story.json()["error"]["code"] == "request_not_found"


@pytest.mark.parametrize("query", [{"minutes": 0}, {"minutes": "x"}, {"width": 10**9}])
def test_a_view_of_another_kind_is_refused(paris: Running, query: dict[str, Any]) -> None:
    assert paris.client.get("/live/now", params=query).status_code == 400


def at(time: float, kind: Kind, request: str | None = None, **more: Any) -> Event:
    return Event(kind, time, more.pop("model", "qwen"), request, **more)


INCIDENT = [
    at(0, "request.queued", "r1"),
    at(0, "request.started", "r1"),
    at(2, "request.first_token", "r1"),
    at(50, "request.queued", "r2", model="phi3", waiting_for=(("j1", "phi3"),)),
    at(50, "load.queued", "r2", model="phi3", job_id="j1"),
    at(50, "load.deferred", "r2", model="phi3", job_id="j1", waiting_for=(("r1", "qwen"),)),
]


def test_who_waits_for_whom() -> None:
    found = view.activity(INCIDENT, {"r1": 101}, now=52.0, seconds=300.0)
    load, request = found.waits
    assert (load.what, load.behind, load.so_far) == ("load of phi3", "r1 (qwen)", 2.0)
    assert (request.request_id, request.behind) == ("r2", "the load of phi3")
    (row,) = found.requests
    assert (row.state, row.tokens, row.speed) == ("answering", 101, 2.0)
    assert found.speeds == {"qwen": 2.0}
    assert found.chart.start == -248.0 and found.chart.end == 52.0
    going = [
        *INCIDENT,
        at(60, "request.paused", "r1", job_id="j1"),
        at(60, "load.started", "r2", model="phi3", job_id="j1"),
    ]
    found = view.activity(going, {"r1": 101}, now=61.0, seconds=300.0)
    assert [wait.behind for wait in found.waits] == ["the load of phi3, which runs"]
    assert found.requests[0].state == "paused" and not found.speeds
    rows = {(row.what, row.state.partition(",")[0]) for row in found.chart_rows()}
    assert {("r1", "paused"), ("load of phi3", "loading"), ("r1", "decode")} <= rows


def test_lists_are_bounded() -> None:
    events = [at(n, "request.queued", f"r{n}", model="phi3") for n in range(200)]
    events += [at(200 + n, "request.started", f"s{n}") for n in range(200)]
    found = view.activity(events, {}, now=500.0, seconds=600.0)
    assert len(found.waits) == view.WAITS and len(found.requests) == view.REQUESTS
    assert len(found.chart_rows()) == view.ROWS


def test_whatever_it_is_called_it_is_text() -> None:
    events = [
        at(0, "request.queued", EVIL, model=EVIL, waiting_for=((EVIL, EVIL),)),
        at(0, "load.deferred", EVIL, model=EVIL, job_id=EVIL, waiting_for=((EVIL, EVIL),)),
        at(1, "request.started", f"{EVIL}2", model=EVIL),
        at(2, "request.failed", f"{EVIL}2", model=EVIL, cause=EVIL),
        at(3, "engine.died", model=None, cause=EVIL),
    ]
    shown = view.View(
        status="ok",
        health=None,
        models=[view.ModelRow(name=EVIL, state="unloaded", error=EVIL)],
        admin=True,
        died=1,
        last_death=(EVIL, 1.0),
        activity=view.activity(events, {}, now=4.0, seconds=60.0),
    )
    text = _templates().get_template("now.html").render(view=shown, shown=Shown())
    page = Page(text)
    assert not {"img", "script"} & {tag for tag, _ in page.tags}
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert "<img" not in text and "49" not in page.text
    assert page.text.count("<img src=x") >= 5
    assert ("load", EVIL) in page.actions()
    assert EVIL in {attributes.get("data-request") for _, attributes in page.tags}


def test_long_ids_keep_their_attempt() -> None:
    assert view.short("r1") == "r1"
    assert view.short("chatcmpl-a4be82225e8a4a25858886a8af5673e8") == "chatcmpl-a4be82225e…"[:20]
    assert view.short("chatcmpl-a4be82225e8a4a25858886a8af5673e8.2").endswith("….2")
