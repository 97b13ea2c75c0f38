"""Servers as processes, and a headless browser that looks at them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

STARTS = 300.0  # seconds for a server, on a machine that does other things as well
MILLISECONDS = 120_000.0  # that Playwright waits for what a page must show


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def process(
    command: list[Any], health: str, log: Path, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that serves, until the end of the block.

    Args:
        command: starts it.
        health: a URL that it answers when it has started.
        log: gets what it prints.
        **options: of `Popen`.
    """
    with log.open("w") as file:
        started = subprocess.Popen(
            [str(word) for word in command], stdout=file, stderr=file, **options
        )
        try:
            deadline = time.monotonic() + STARTS
            while not _answers(health):
                assert started.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield started
        finally:
            started.terminate()
            started.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of Playwright's: the system's Chromium, without one Playwright's own."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=MILLISECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield browser
        browser.close()
