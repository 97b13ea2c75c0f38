"""How many calls one request makes in this library's own code.

    python -m benchmarks.request_path

A warm `ChatMLXGuarded.invoke` of one token on a tiny model: calls of our functions, distinct
functions, and the files they are in. By process it counts the parent's side only. No time is
measured: a profiler would change it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

OURS = ("mlx_guarded_llm", "langchain_mlx_guarded")
ROUNDS = 9
_seen: Counter[CodeType] = Counter()
_counting = False


def _hear(frame: FrameType, event: str, argument: Any) -> None:
    if _counting and event == "call":
        _seen[frame.f_code] += 1


def _is_ours(code: CodeType) -> bool:
    parts = Path(code.co_filename).parts
    return any(package in parts for package in OURS) and "testing" not in parts


def measure(isolation: str) -> tuple[int, int, int]:
    """Calls, functions and files of one warm request; the median of some.

    Args:
        isolation: of the backend.
    """
    global _counting
    from langchain_mlx_guarded import ChatMLXGuarded
    from mlx_guarded_llm import Backend
    from mlx_guarded_llm.testing.tiny import make_tiny_model

    found = []
    with tempfile.TemporaryDirectory() as folder, Backend(isolation=isolation) as backend:  # type: ignore[arg-type]
        model = str(make_tiny_model(Path(folder) / "tiny"))
        chat = ChatMLXGuarded(model=model, backend=backend, max_tokens=1, on_degraded="mark")
        for _ in range(2):
            chat.invoke("Hello")
        for _ in range(ROUNDS):
            _seen.clear()
            _counting = True
            chat.invoke("Hello")
            _counting = False
            ours = {code: count for code, count in _seen.items() if _is_ours(code)}
            files = {code.co_filename for code in ours}
            found.append((sum(ours.values()), len(ours), len(files)))
    calls, functions, files_ = (
        round(statistics.median(column)) for column in zip(*found, strict=True)
    )
    return calls, functions, files_


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    threading.setprofile(_hear)  # of every thread that is to come
    sys.setprofile(_hear)
    print("| isolation | calls | functions | files |\n|---|---|---|---|")
    for isolation in ("process", "thread"):
        calls, functions, files = measure(isolation)
        print(f"| {isolation} | {calls} | {functions} | {files} |", flush=True)


if __name__ == "__main__":
    main()
