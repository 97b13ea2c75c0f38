"""What the tests of the clients from npm have in common."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Running

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
WINDOW = 200_000  # each byte of a prompt is a token
PAGES = HERE.parents[2] / "docs" / "how-to" / "clients"


@pytest.fixture(scope="session")
def node() -> str:
    """Node.js, with the clients installed beside this file."""
    found = shutil.which("node")
    if found is None or not (MODULES / "ai").is_dir():
        pytest.skip("Node.js or the clients from npm are missing; `make npm-clients` installs them")
    return found


def blocks_of(page: str, language: str, running: Running) -> list[str]:
    """The blocks of code of a page of the docs, for a server that runs now."""
    text = (PAGES / page).read_text()
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [block.replace("http://127.0.0.1:8080", running.url) for block in blocks]


def settings_of(page: str, language: str, running: Running) -> str:
    """The one that has the server's address."""
    [block] = [block for block in blocks_of(page, language, running) if running.url in block]
    return block


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def asked(running: Running) -> list[str | None]:
    """The models that began to answer, in order."""
    return [event.model for event in running.backend.events() if event.kind == "request.started"]


def png() -> bytes:
    """A red square."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    rows = zlib.compress(b"".join(b"\0" + b"\xff\0\0" * 16 for _ in range(16)))
    head = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data) for kind, data in ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    )


@dataclass
class ClaudeSession:
    """What a session printed.

    Attributes:
        lines: its messages and other events, as objects.
        result: the last line.
    """

    lines: Sequence[dict[str, Any]]

    @property
    def result(self) -> dict[str, Any]:
        return next(line for line in reversed(self.lines) if line["type"] == "result")

    def told(self, kind: str) -> list[str]:
        """All that was told in blocks of a kind, as JSON."""
        messages = [line["message"] for line in self.lines if "message" in line]
        blocks = [
            block for m in messages if isinstance(m["content"], list) for block in m["content"]
        ]
        return [json.dumps(block) for block in blocks if block["type"] == kind]


Claude = Callable[..., ClaudeSession]


@pytest.fixture
def claude(node: str, tmp_path: Path) -> Claude:
    """Run a session: `claude(running, "opus", "Do it.", "--tools", "Read", VARIABLE="value")`."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()

    def run(running: Running, model: str, prompt: str, *flags: str, **more: str) -> ClaudeSession:
        chosen = ("--model", model) if model else ()
        exports = settings_of("claude-code.md", "bash", running)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": str(tmp_path),
            "CLAUDE_CODE_MAX_RETRIES": "0",
            **dict(re.findall(r'(?m)^export (\w+)="?(.*?)"?(?: +#.*)?$', exports)),
            "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(WINDOW),  # each byte is a token here
            **more,
        }
        wrapper = MODULES / "@anthropic-ai" / "claude-code" / "cli-wrapper.cjs"
        ran = subprocess.run(
            [
                *(node, str(wrapper), *chosen, *flags),
                *("--output-format", "stream-json", "--verbose", "-p", prompt),
            ],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )
        lines = [json.loads(line) for line in ran.stdout.splitlines()]
        assert lines and lines[-1]["type"] == "result", ran.stdout + ran.stderr
        return ClaudeSession(lines)

    return run


@dataclass
class CodexSession:
    """What a session printed, as objects."""

    lines: Sequence[dict[str, Any]]

    def said(self, kind: str) -> list[str]:
        """The texts of all items of a kind."""
        items = [line["item"] for line in self.lines if line["type"] == "item.completed"]
        keys = ("text", "message", "aggregated_output")
        return [
            next(item[key] for key in keys if key in item) for item in items if item["type"] == kind
        ]

    @property
    def failure(self) -> str:
        """The message of the error that ended it."""
        [line] = [line for line in self.lines if line["type"] == "turn.failed"]
        return str(line["error"]["message"])


Codex = Callable[..., CodexSession]


@pytest.fixture
def codex(node: str, tmp_path: Path) -> Codex:
    """Run a session: `codex(running, "Do it.", "-c", "model_context_window=40000")`."""
    home, work = tmp_path / "home", tmp_path / "work"
    (home / ".codex").mkdir(parents=True)
    work.mkdir()

    def run(running: Running, model: str, prompt: str, *flags: str) -> CodexSession:
        text = settings_of("codex.md", "toml", running)
        if model:
            text = re.sub('(?m)^model = ".*"', f'model = "{model}"', text)
        (home / ".codex" / "config.toml").write_text(text)
        ran = subprocess.run(
            [
                *(node, str(MODULES / "@openai" / "codex" / "bin" / "codex.js"), "exec", *flags),
                # The sandbox that it brings cannot be built in every container.
                *("--json", "--skip-git-repo-check", "-c", 'sandbox_mode="danger-full-access"'),
                prompt,
            ],
            cwd=work,
            env={"PATH": os.environ["PATH"], "HOME": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )
        lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
        assert lines, ran.stdout + ran.stderr
        return CodexSession(lines)

    return run
