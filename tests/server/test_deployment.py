"""The files that have a system start the server: they hold what the pages say, and they work."""

from __future__ import annotations

import os
import plistlib
import shlex
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import httpx
import pytest

from mlx_guarded_llm.server.running import GRACE
from mlx_guarded_llm.server.settings import Settings
from tests.conftest import MakeModel

from ._wait import until
from .conftest import ANSWER

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
UNIT = DEPLOY / "mlx-guarded.service"
PLIST = DEPLOY / "mlx-guarded-llm.serve.plist"
SCRIPT = Path(sys.executable).with_name("mlx-guarded")
# How long they wait for the server to end.
PATIENCE = Settings().drain + GRACE


def unit() -> dict[str, str]:
    """The section Service."""
    sections: dict[str, dict[str, str]] = defaultdict(dict)
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            assert key not in sections[section], f"{key} is given twice"
            sections[section][key] = value
    assert list(sections) == ["Unit", "Service", "Install"]
    return sections["Service"]


@pytest.fixture
def home(tmp_path: Path, scripted: MakeModel) -> Path:
    """Where a user has installed the command and written settings, as the page says."""
    script = tmp_path / ".local" / "bin" / "mlx-guarded"
    script.parent.mkdir(parents=True)
    script.symlink_to(SCRIPT)
    settings = tmp_path / ".config" / "mlx-guarded-llm" / "server.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'uds = "{tmp_path}/sock"\n[models.paris]\nmodel = "{scripted(ANSWER)}"\n')
    (tmp_path / "Library" / "Logs").mkdir(parents=True)
    return tmp_path


def runs(command: list[str], home: Path) -> None:
    """A command starts the server, and SIGTERM ends it in order."""
    environment = {"HOME": str(home), "PATH": os.defpath, "TMPDIR": str(home)}
    process = subprocess.Popen(command, env=environment, cwd="/", start_new_session=True)
    try:
        until(lambda: (home / "sock").exists() or process.poll() is not None)
        assert process.poll() is None
        transport = httpx.HTTPTransport(uds=str(home / "sock"))
        with httpx.Client(transport=transport, timeout=60) as client:
            (model,) = client.get("http://localhost/v1/models").json()["data"]
        assert model["id"] == "paris"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()


def test_systemd_starts_it(home: Path) -> None:
    runs(shlex.split(unit()["ExecStart"].replace("%h", str(home))), home)


def test_systemd_knows_all_that_the_unit_says(home: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    copy = home / UNIT.name
    shutil.copy(UNIT, copy)
    done = subprocess.run(
        [analyze, "--user", "verify", copy],
        env={"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )
    # Of a key that it does not know it only warns.
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_lets_answers_end() -> None:
    service = unit()
    assert float(service["TimeoutStopSec"]) > PATIENCE
    assert service["KillMode"] == "mixed"  # the engine ends on SIGTERM, and answers need it
    assert service["OOMPolicy"] == "continue"
    assert service["Restart"] == "on-failure"


def test_launchd_starts_it(home: Path) -> None:
    runs(plistlib.loads(PLIST.read_bytes())["ProgramArguments"], home)
    assert "Serving paris" in (home / "Library" / "Logs" / "mlx-guarded.log").read_text()


def test_launchd_lets_answers_end() -> None:
    agent = plistlib.loads(PLIST.read_bytes())
    assert agent["Label"] == PLIST.stem
    assert agent["ExitTimeOut"] > PATIENCE
    assert agent["KeepAlive"] == {"SuccessfulExit": False} and agent["RunAtLoad"] is True
    assert agent["Umask"] == 0o077
