"""The same scene on a server without a guard, in a process of its own, which dies."""

from __future__ import annotations

import codecs
import signal
import subprocess
import sys
from pathlib import Path

from rich.text import Text

from ..console import harmless, out, say

NAIVE = "mlx_guarded_llm.testing.naive"


def show_naive(folder_a: Path, folder_b: Path, prompt: str, max_tokens: int) -> bool:
    """Run the naive server on two models and show its output.

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
    return _tell(server.returncode)


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
    ended = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    out().print(Text(f"It {ended}; it was to die of SIGABRT.", style="yellow"))
    return False
