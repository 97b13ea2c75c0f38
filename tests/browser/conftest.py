"""The live view of `mlx-guarded serve` in a headless Chromium.

`make test-browser` installs what it needs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests._browser import MILLISECONDS, chromium, free_port, process
from tests.conftest import MakeModel
from tests.server._wait import until

SHOTS = os.environ.get("BROWSER_SHOTS")  # a folder for pictures
AXE = Path(__file__).parent / "axe" / "node_modules" / "axe-core" / "axe.min.js"
EVIL = "<img src=x onerror=alert(1)>"

ADMIN, SOME = "admin-secret", "some-secret"
KEYS = f"""
[keys.ops]
key = "{ADMIN}"
admin = true
[keys.alice]
key = "{SOME}"
models = ["paris"]
"""


class Site:
    """A server with a model that never stops, and others.

    Attributes:
        url: where it is, before and after a restart.
        client: asks it, with the key of an admin.
    """

    def __init__(self, folder: Path, config: str) -> None:
        self._folder = folder
        self._config = folder / "server.toml"
        self._config.write_text(config)
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.client = httpx.Client(
            base_url=self.url, timeout=120, headers={"authorization": f"Bearer {ADMIN}"}
        )
        self._process: Any = None
        self._ends = ExitStack()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        serve = Path(sys.executable).with_name("mlx-guarded")
        self._process = self._ends.enter_context(
            process(
                [serve, "serve", "--config", self._config, "--port", self._port],
                f"{self.url}/health",
                self._folder / "serve.log",
                env={**os.environ, "MLX_GUARDED_CACHE_DIR": str(self._folder / "cache")},
            )
        )

    def kill(self) -> None:
        """It is gone at once."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        self.client.close()
        self._ends.close()

    def ask(self, model: str, tokens: int = 60_000) -> httpx.Response:
        body = {
            "model": model,
            "max_tokens": tokens,
            "messages": [{"role": "user", "content": "Where?"}],
        }
        return self.client.post("/v1/chat/completions", json=body, timeout=600)

    def running(self) -> int:
        return int(self.client.get("/health").json()["running"])

    def state(self, model: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/v1/models/{model}").json()
        return found

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Rome answers, and Paris waits for it."""
        self.client.post("/models/unload", json={"model": "paris"})
        asking = [threading.Thread(target=self.ask, args=("rome",))]
        asking[0].start()
        until(self.running)
        asking.append(threading.Thread(target=self.ask, args=("paris", 8)))
        asking[1].start()
        until(lambda: self.client.get("/health").json()["waiting"])
        # What a page shows may be a second old, and name the requests of the test before.
        until(lambda: len(self.under_way()) == len(asking))
        try:
            yield
        finally:
            self.stop_all()
            for thread in asking:
                thread.join()
            until(lambda: not self.under_way())

    def under_way(self) -> list[str]:
        """The requests that the page offers to cancel."""
        parts = self.client.get("/live/now").text.split('data-do="cancel" data-to="')
        return [part.partition('"')[0] for part in parts[1:]]

    def stop_all(self) -> None:
        """Cancel whatever is under way."""
        for request_id in self.under_way():
            self.client.post("/guard/cancel", json={"request_id": request_id})


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if find_spec("playwright") is None:
        pytest.skip("`make test-browser` installs the browser and runs this")
    with chromium() as started:
        yield started


MakeSite = Callable[..., Site]


@pytest.fixture(scope="session")
def make_site(
    browser: Any, scripted: MakeModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeSite]:
    """Start servers: `make_site(KEYS)`."""
    del browser  # without one no server is needed
    with ExitStack() as ends:

        def make(more: str = "") -> Site:
            rome = scripted("Rome is old. ", context_window=65536, loop=True)
            paris = scripted("It is Paris.")
            config = (
                "heartbeat = 1\nearly_errors = 5\n"
                f'[models.rome]\nmodel = "{rome}"\nmax_tokens = 60000\n'
                f'[models.paris]\nmodel = "{paris}"\n'
                f'[models."{EVIL}"]\nmodel = "{scripted("It is not.")}"\n'
                "[guard]\nload_wait = 600\n" + more
            )
            site = Site(tmp_path_factory.mktemp("site"), config)
            ends.callback(site.close)
            site.start()
            return site

        yield make


@pytest.fixture(scope="session")
def site(make_site: MakeSite) -> Site:
    """A server without keys."""
    return make_site()


@pytest.fixture(scope="session")
def locked(make_site: MakeSite) -> Site:
    """A server with keys."""
    return make_site(KEYS)


OpenPage = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Open the live view: `open_page(site, width=390, scheme="dark")`.

    At the end nothing may have gone wrong in it: no error of a script, nothing that the
    Content-Security-Policy stopped, no dialog of a model's name, no request to another host.
    """
    wrong: list[str] = []
    asked: list[str] = []
    urls: list[str] = []
    with ExitStack() as ends:

        def start(site: Site, *, width: int = 1280, scheme: str = "light") -> Any:
            context = browser.new_context(
                locale="en-US",
                viewport={"width": width, "height": 844},
                color_scheme=scheme,
                reduced_motion="reduce",
            )
            ends.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(MILLISECONDS)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda said: _note(wrong, said.text))
            page.on("dialog", lambda dialog: wrong.append(dialog.message))
            page.on("request", lambda request: asked.append(request.url))
            urls.append(site.url)
            page.goto(site.url)
            return page

        yield start
    assert not wrong
    assert asked and all(url.startswith(tuple(urls)) for url in asked)


def _note(wrong: list[str], said: str) -> None:
    # A refused key and a server that is gone are told there as well.
    if not said.startswith("Failed to load resource"):
        wrong.append(said)


def shot(page: Any, name: str) -> None:
    """A picture of the page, to be looked at."""
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


@pytest.fixture
def barriers() -> Callable[[Any], list[str]]:
    """What axe finds on a page: `barriers(page)`."""
    if not AXE.is_file():
        pytest.skip("axe-core is missing; `make test-browser` installs it")
    script = AXE.read_text()

    def find(page: Any) -> list[str]:
        page.evaluate(script)  # as the page's policy lets in no script tag
        found = page.evaluate("axe.run()")
        return [
            f"{violation['id']}: {node['html']} {node['failureSummary']}"
            for violation in found["violations"]
            for node in violation["nodes"]
        ]

    return find
