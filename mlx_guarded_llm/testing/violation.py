"""What a witness says when two pieces of MLX work overlap."""

from __future__ import annotations

import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

from mlx_guarded_llm.testing.sections import Generation, Section

_OWN_FILES = {
    str(Path(__file__).with_name(name))
    for name in ("patches.py", "sections.py", "violation.py", "witness.py")
}


@dataclass(frozen=True)
class Violation:
    """Two pieces of work that overlapped.

    Attributes:
        entered: the work that began, such as "load of phi3".
        beside: the work that was still in progress, such as "generation of llama".
        models: the model, or the label, of each of the two.
        threads: the name of the thread of each; "?" for a generation that never stepped.
        message: both of them in the style of Metal's assertion, with their stacks.
    """

    entered: str
    beside: str
    models: tuple[str, str]
    threads: tuple[str, str]
    message: str

    @classmethod
    def between(cls, entered: Section, beside: Section | Generation) -> Violation:
        """Describe an overlap; called on the thread of `entered`."""
        threads = (_name(entered.thread), _name(beside.thread))
        headline = (
            f"-[MLXGuardedWitness enter:]: failed assertion '{entered} on {threads[0]} "
            f"overlaps {beside} on {threads[1]}'"
        )
        stacks = [_stack(entered.thread)]
        if beside.thread is not entered.thread:
            stacks.append(_stack(beside.thread))
        return cls(
            entered=str(entered),
            beside=str(beside),
            models=(entered.model, beside.model),
            threads=threads,
            message="\n".join([headline, *stacks]),
        )


def _name(thread: threading.Thread | None) -> str:
    return thread.name if thread is not None else "?"


def _stack(thread: threading.Thread | None, *, depth: int = 6) -> str:
    """The end of a thread's stack, as a traceback prints it, without our own frames."""
    if thread is None:
        return "  a generation that has made no step yet"
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return f"  {thread.name} has ended"
    frames = [entry for entry in traceback.extract_stack(frame) if entry.filename not in _OWN_FILES]
    lines = traceback.format_list(frames[-depth:])
    return f"  {thread.name}, most recent call last:\n" + "".join(lines).rstrip()
