"""The blocks of code on the pages, as examples that can be run.

Python stands in fences marked `python`. Commands stand in fences marked `console`, after "$ ", in
fences marked `bash`, or in indented blocks that begin with a program. A comment before a block says
how it is run:

    <!-- not run: REASON -->        what it needs is not here
    <!-- run before: CODE -->       lines of the same language that the reader has to imagine
    <!-- file: NAME -->             what follows is the text of a file
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("integrations/*/README.md")),
)
# Programs that are not run, or only by other targets, and why.
ELSEWHERE = {
    "apt": "changes the machine",
    "brew": "needs macOS",
    "claude": "`make test-npm` runs it",
    "codex": "`make test-npm` runs it",
    "docker": "needs Docker",
    "journalctl": "needs systemd",
    "launchctl": "needs macOS",
    "loginctl": "needs systemd",
    "make": "a target for developers",
    "npm": "`make test-npm` runs it",
    "npx": "`make test-npm` runs it",
    "ollama": "a program of others",
    "opencode": "`make test-npm` runs it",
    "open-webui": "`make test-openwebui` runs it",
    "pip": "installs packages; tests/e2e/test_wheels.py installs the wheels",
    "serve": "needs Ray; `make test-ray` runs it",
    "sudo": "changes the machine",
    "systemctl": "needs systemd",
    "uv": "installs packages; tests/e2e/test_wheels.py installs the wheels",
}
_BENCHMARK = re.compile(r"(\S*python|\$B|B=\S*python) (-m )?benchmarks|^\$B|^B=")
_PROGRAMS = {*ELSEWHERE, "curl", "mlx-guarded", "python", "$B"}
_BIN = ".venv/bin/"  # where a clone has its programs

_SAID = re.compile(r"<!-- (not run|run before|file):(.*?)-->", re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A block of Python, one command, or a file.

    Attributes:
        page: the path of its page, from the root.
        line: where it begins.
        language: "python", "shell" or "file".
        code: what is run, or the text of the file.
        before: what is run before it, in the same place; or the name of the file.
        shown: the lines below a command, up to the next.
        not_run: why it is not run, or "".
    """

    page: str
    line: int
    language: str
    code: str
    before: str = ""
    shown: str = ""
    not_run: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def examples(path: Path) -> list[Example]:
    """Every example of a page, in order."""
    page = str(path.relative_to(ROOT))
    return list(_examples(page, path.read_text(encoding="utf-8"), 1))


def _examples(page: str, text: str, first: int) -> Iterator[Example]:
    """Those of a text that begins in line `first` of a page."""
    said = ""
    for token in MarkdownIt().parse(text):
        if token.map is None:
            continue
        line = first + token.map[0]
        if token.type == "html_block":
            said = token.content
            continue
        if token.type == "code_block" and re.search("^ *```", token.content, re.MULTILINE):
            yield from _examples(page, token.content, line)  # a fence in a tab or an admonition
        elif token.type == "fence":
            yield from _of_block(page, line + 1, token.content, token.info.split(" ")[0], said)
        elif token.type == "code_block" and _is_command(token.content):
            yield from _of_block(page, line, token.content, "indented", said)
        said = ""


def _is_command(text: str) -> bool:
    return text.split(maxsplit=1)[0].removeprefix(_BIN) in _PROGRAMS


def _of_block(page: str, line: int, body: str, language: str, said: str) -> Iterator[Example]:
    match = _SAID.search(said)
    kind, words = (match[1], textwrap.dedent(match[2].lstrip(" ")).strip()) if match else ("", "")
    before, not_run = ("", words) if kind == "not run" else (words, "")
    if kind == "file":
        yield Example(page, line, "file", body, before)
    elif language == "python":
        yield Example(page, line, "python", body, before, not_run=not_run)
    elif language in ("console", "bash", "indented"):
        for offset, command, shown in _commands(
            body.replace(_BIN, ""), prompted=language == "console"
        ):
            why = not_run or _elsewhere(command)
            yield Example(page, line + offset, "shell", command, before, shown, why)


def _commands(body: str, *, prompted: bool) -> Iterator[tuple[int, str, str]]:
    """The line, the text and what is shown below it, of each command of a block."""
    lines = body.splitlines()
    n = 0
    while n < len(lines):
        begin = n
        first = lines[n]
        n += 1
        if not first.strip() or first.startswith("#") or (prompted and not first.startswith("$ ")):
            continue
        command = first.removeprefix("$ ") if prompted else first
        while n < len(lines) and not _whole(command):
            command += f"\n{lines[n]}"
            n += 1
        end = n
        if prompted:
            while n < len(lines) and not lines[n].startswith("$ "):
                n += 1
        yield begin, command, "\n".join(lines[end:n])


def _whole(command: str) -> bool:
    """Whether no quote is open and no line continues."""
    if command.endswith("\\"):
        return False
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True


def _elsewhere(command: str) -> str:
    if _BENCHMARK.search(command):
        return "a measurement, which takes long"
    programs = re.findall(r"(?:^|&& |\| )(?:\w+=\S+ )*([\w./$-]+)", command)
    return next((ELSEWHERE[name] for name in programs if name in ELSEWHERE), "")
