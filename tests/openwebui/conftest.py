"""Open WebUI as its users install it, in a browser, in front of `mlx-guarded serve`.

`make test-openwebui` installs it and the driver of the browser, and says where it is.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests._browser import MILLISECONDS, chromium, free_port, process
from tests.conftest import MakeModel

SHOTS = os.environ.get("OPENWEBUI_SHOTS")  # a folder for pictures of each step

ANSWER = "The capital of France is Paris, and no other."
ROME = "Rome is the capital of Italy. "
THOUGHT = "<think>Which one?</think>It is Paris."


@dataclass
class Stand:
    """What runs.

    Attributes:
        page: of the browser, in which somebody has signed up who is its administrator.
        webui: address of Open WebUI.
        server: client of `mlx-guarded serve`.
    """

    page: Any
    webui: str
    server: httpx.Client

    def shot(self, name: str) -> None:
        """A picture of the page, to be looked at."""
        if SHOTS:
            self.page.screenshot(path=Path(SHOTS) / f"{name}.png")

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait for what the page does not show."""
        deadline = time.monotonic() + MILLISECONDS / 1000
        while not ready():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.1)

    def running(self) -> int:
        """How many requests the server answers or holds in its queue."""
        health = self.server.get("/health").json()
        return int(health["running"]) + int(health["waiting"])

    def settings(self, tab: str) -> None:
        """Open one page of the administrator's settings."""
        self.page.goto(self.webui)
        self.page.get_by_role("button", name="User menu").first.click()
        self.page.get_by_role("menuitem", name="Settings").click()
        self.page.get_by_role("tablist", name="Admin").get_by_role("tab", name=tab).click()

    def chat(self, model: str, text: str) -> None:
        """Begin a chat with a model."""
        self.page.goto(self.webui)
        self.page.locator("#model-selector-model-button").click()
        self.page.get_by_role("option", name=f"Select {model} model").click()
        self.page.locator("#chat-input").click()
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")

    def answer(self) -> Any:
        """The last answer of the chat."""
        return self.page.locator(".chat-assistant").last


@pytest.fixture(scope="session")
def stand(scripted: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    script = os.environ.get("OPENWEBUI")
    if script is None:
        pytest.skip("`make test-openwebui` installs Open WebUI and runs this")
    folder = tmp_path_factory.mktemp("openwebui")
    config = folder / "server.toml"
    config.write_text(
        "heartbeat = 1\n"
        + _entry("paris", scripted(ANSWER, context_window=65536))
        + _entry("rome", scripted(ROME, context_window=65536, loop=True), "max_tokens = 60000")
        + _entry("thinker", scripted(THOUGHT, context_window=65536, thinking=True))
        # Too small for the tools that come with each question.
        + _entry("small", scripted(ANSWER, context_window=64), 'fallbacks = ["paris"]')
    )
    ours, theirs = free_port(), free_port()
    serve = Path(sys.executable).with_name("mlx-guarded")
    # Open WebUI looks for its settings, and writes its files, in the current folder.
    environment = {
        **os.environ,
        "USE_SLIM_DOCKER": "true",  # without torch and the like, which it has for other things
        "DATA_DIR": str(folder),
        "WEBUI_SECRET_KEY": "none",
        "OFFLINE_MODE": "true",
        "ENABLE_OLLAMA_API": "false",
        "ENABLE_TITLE_GENERATION": "false",  # so that only the chat is answered
        "ENABLE_TAGS_GENERATION": "false",
        "ENABLE_FOLLOW_UP_GENERATION": "false",
        "OPENAI_API_BASE_URLS": "http://127.0.0.1:9/v1",  # instead of OpenAI's
    }
    with (
        process(
            [serve, "serve", "--config", config, "--port", ours],
            f"http://127.0.0.1:{ours}/health",
            folder / "serve.log",
            env={**os.environ, "MLX_GUARDED_CACHE_DIR": str(folder / "cache")},
        ),
        process(
            [script, "serve", "--host", "127.0.0.1", "--port", theirs],
            f"http://127.0.0.1:{theirs}/health",
            folder / "webui.log",
            env=environment,
            cwd=folder,
        ),
        _browser() as page,
        httpx.Client(base_url=f"http://127.0.0.1:{ours}", timeout=60) as client,
    ):
        stand = Stand(page, f"http://127.0.0.1:{theirs}", client)
        _sign_up(stand)
        _connect(stand, f"http://127.0.0.1:{ours}/v1")
        yield stand


def _entry(name: str, folder: str, more: str = "") -> str:
    return f'[models.{name}]\nmodel = "{folder}"\n{more}\n'


@contextmanager
def _browser() -> Iterator[Any]:
    with chromium() as browser:
        page = browser.new_page(locale="en-US", viewport={"width": 1280, "height": 900})
        page.set_default_timeout(MILLISECONDS)
        yield page


def _sign_up(stand: Stand) -> None:
    """The first who does is the administrator."""
    page = stand.page
    page.goto(stand.webui)
    page.get_by_role("button", name="Get started").click()
    page.get_by_placeholder("Enter Your Full Name").fill("Ada")
    page.get_by_placeholder("Enter Your Email").fill("ada@example.com")
    page.get_by_placeholder("Enter Your Password").fill("correct horse 9 Battery")
    stand.shot("sign-up")
    page.get_by_role("button", name="Create Admin Account").click()
    page.get_by_role("button", name="Okay, Let's Go!").click()  # past what is new


def _connect(stand: Stand, url: str) -> None:
    page = stand.page
    stand.settings("Connections")
    page.get_by_role("button", name="Configure").click()
    page.locator("#url-input").fill(url)
    page.get_by_role("button", name="Verify Connection").click()
    page.get_by_text("Server connection verified").wait_for()
    stand.shot("connection")
    page.get_by_role("button", name="Save").last.click()
    page.get_by_text("OpenAI API settings updated").wait_for()
