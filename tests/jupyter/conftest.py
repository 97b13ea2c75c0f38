"""JupyterLab in a headless Chromium, with kernels of this environment.

`make test-jupyter` installs it and the driver of the browser, and says where it is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests._browser import MILLISECONDS, chromium, free_port, process

SHOTS = os.environ.get("JUPYTER_SHOTS")  # a folder for pictures
TOKEN = "secret"
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are drawn
}


class Notebook:
    """A notebook that is open.

    Attributes:
        page: of the browser.
    """

    def __init__(self, page: Any) -> None:
        self.page = page

    def do(self, command: str, **arguments: Any) -> None:
        """A command of JupyterLab, without waiting for its end."""
        self.page.evaluate(
            "([name, given]) => { window.jupyterapp.commands.execute(name, given) }",
            [command, arguments],
        )

    def run(self, number: int) -> Any:
        """Begin to run a cell, and return its outputs."""
        cell = self.page.locator(".jp-CodeCell").nth(number)
        cell.locator(".cm-content").click()
        self.do("notebook:run-cell")
        return cell.locator(".jp-Cell-outputArea")

    def stop(self) -> None:
        """Press the stop button."""
        self.page.locator('[data-command="notebook:interrupt-kernel"]').first.click()

    def ended(self) -> None:
        """Wait until no cell runs."""
        self.page.get_by_role("button", name="Python 3 | Idle").wait_for()

    def shot(self, name: str) -> None:
        """A picture of the page, to be looked at."""
        if SHOTS:
            self.page.screenshot(path=Path(SHOTS) / f"{name}.png")


class Lab:
    """A running JupyterLab.

    Attributes:
        folder: of the notebooks.
    """

    def __init__(self, url: str, folder: Path, browser: Any) -> None:
        self.folder = folder
        self._url = url
        self._browser = browser

    def open(
        self, name: str, *, dark: bool = False, kernel: bool = True, height: int = 1000
    ) -> Notebook:
        """Open a notebook of the folder in a new page.

        Args:
            name: of the file.
            dark: on a dark page.
            kernel: wait for its kernel.
            height: of the page, in pixels.
        """
        page = self._browser.new_page(viewport={"width": 1200, "height": height})
        page.set_default_timeout(MILLISECONDS)
        page.goto(f"{self._url}/lab/tree/{name}?token={TOKEN}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        opened = Notebook(page)
        theme = "JupyterLab Dark" if dark else "JupyterLab Light"
        opened.do("apputils:change-theme", theme=theme)
        page.wait_for_selector(f'body[data-jp-theme-name="{theme}"]', state="attached")
        if kernel:
            opened.ended()
        return opened

    def write(self, name: str, *cells: str) -> str:
        """Write a notebook with these cells, and return its name."""
        # nbformat's functions have no types.
        code = [nbformat.v4.new_code_cell(cell) for cell in cells]  # type: ignore[no-untyped-call]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        notebook = nbformat.v4.new_notebook(cells=code, metadata=kernel)  # type: ignore[no-untyped-call]
        nbformat.write(notebook, self.folder / name)  # type: ignore[no-untyped-call]
        return name


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    command = os.environ.get("JUPYTERLAB")
    if command is None:
        pytest.fail("JUPYTERLAB does not say where JupyterLab is; run `make test-jupyter`")
    top = tmp_path_factory.mktemp("jupyter")
    folder = top / "notebooks"
    folder.mkdir()
    kernel = top / "data" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    for name, values in SETTINGS.items():
        file = top / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "JUPYTER_PATH": str(top / "data"),  # before the kernels of its own environment
        "JUPYTER_DATA_DIR": str(top / "data"),
        "JUPYTER_CONFIG_DIR": str(top / "config"),
        "JUPYTER_RUNTIME_DIR": str(top / "runtime"),
    }
    arguments = [
        *("lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"),
        *(f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"),
        *(f"--LabApp.user_settings_dir={top / 'settings'}", "--LabApp.expose_app_in_browser=True"),
        f"--LabApp.workspaces_dir={top / 'workspaces'}",
    ]
    health = f"{url}/api?token={TOKEN}"
    with (
        process([command, *arguments], health, top / "log", env=environment, cwd=folder),
        chromium() as browser,
    ):
        yield Lab(url, folder, browser)
