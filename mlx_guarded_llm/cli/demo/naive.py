"""The same scene on a server without a guard, in a process of its own, which dies."""

from __future__ import annotations

import codecs
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.text import Text

from ...record import Event, Kind, write_perfetto
from ..console import harmless, out, say

NAIVE = "mlx_guarded_llm.testing.naive"


def show_naive(
    folder_a: Path, folder_b: Path, prompt: str, max_tokens: int, trace: Path | None = None
) -> bool:
    """Run the naive server on two models and show its output.

    Args:
        folder_a: the model that answers.
        folder_b: the model that is loaded meanwhile.
        prompt: of the answer.
        max_tokens: of the answer; the load begins after a third of them.
        trace: a file for what happened.

    Returns:
        Whether it died of SIGABRT, as expected.
    """
    say(
        out(),
        f"A server with no guard answers with {folder_a.name}. After {max_tokens // 3} tokens a "
        f"second thread loads {folder_b.name} at once.\n",
    )
    # The models' own folders: the server knows no aliases.
    command = [
        sys.executable, "-m", NAIVE, str(folder_a), str(folder_b),
        "--prompt", prompt, "--max-tokens", str(max_tokens), "--at", str(max_tokens // 3),
    ]  # fmt: skip
    if trace is None:
        return _tell(_run(command))
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "events")
        code = _run([*command, "--record", str(record)])
        write_perfetto(_events(record, code), trace)
    return _tell(code)


def _run(command: list[str]) -> int:
    """Show the output of a process, and return its exit code."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as server:
        assert server.stdout is not None
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while piece := server.stdout.read1():  # type: ignore[attr-defined]
                _show(decoder.decode(piece))
        except BaseException:
            server.kill()
            raise
    return server.returncode


def _events(record: Path, code: int) -> list[Event]:
    """What the server wrote, and its death, which it could not write."""
    events = [Event(**json.loads(line)) for line in record.read_text(encoding="utf-8").splitlines()]
    if code >= 0:
        return events
    now, cause = time.monotonic(), _ended(code)
    unfinished = {}
    for event in events:
        subject, _, verb = event.kind.partition(".")
        unfinished[subject, event.request_id] = event
        if verb == "finished":
            del unfinished[subject, event.request_id]
    kinds: dict[str, Kind] = {"load": "load.failed", "request": "request.failed"}
    lost = [
        event._replace(kind=kinds[subject], time=now, cause=cause)
        for (subject, _), event in unfinished.items()
    ]
    return [*events, *lost, Event("engine.died", now, cause=cause)]


def _show(text: str) -> None:
    out().print(Text(harmless(text), style="dim"), end="", soft_wrap=True)


def _tell(code: int) -> bool:
    out().print()
    if code == -signal.SIGABRT:
        out().print(Text("It died of SIGABRT, as the server of the incident did.", "bold red"))
        say(
            out(),
            "The witness aborted it, as Metal does, because a load began while a generation was "
            "unfinished. The same scene under the guard: mlx-guarded demo",
        )
        return True
    out().print(Text(f"It {_ended(code)}; it was to die of SIGABRT.", style="yellow"))
    return False


def _ended(code: int) -> str:
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
