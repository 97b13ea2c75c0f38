"""The part of a dead worker's stderr that says why it died."""

from __future__ import annotations

_DUMP = "Fatal Python error: "  # what faulthandler begins with
_FRAMES = 3  # of its stack: the innermost ones say where, the rest is always the same


def stderr_excerpt(stderr: str, limit: int = 600) -> str:
    """The last informative lines.

    faulthandler's dump lists every thread. Only its first line and the innermost frames are
    kept, because what was written before the dump says more.

    Args:
        stderr: as it was written.
        limit: characters at most.
    """
    before, dumped, dump = stderr.rpartition(_DUMP)
    lines = (before if dumped else stderr).splitlines()
    if dumped:
        kind, *rest = dump.splitlines() or [""]
        _, _, stack = "\n".join(rest).partition("Current thread")
        lines += [dumped + kind, *stack.splitlines()[1 : _FRAMES + 1]]
    text = "\n".join(line.rstrip() for line in lines if line.strip())
    return text if len(text) <= limit else "…" + text[-(limit - 1) :]
