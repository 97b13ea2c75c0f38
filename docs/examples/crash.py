"""An answer outlives the engine that began it.

    python docs/examples/crash.py [MODEL]

The same question is asked twice with the same seed. The second time the engine's process
gets SIGABRT in the middle of the answer, as from a Metal assertion. A new engine goes on after
the tokens that were passed on: the caller sees a pause, then the rest of the answer.
"""

# ruff: noqa: T201 - a script that prints
from __future__ import annotations

import os
import signal
import sys

from mlx_guarded_llm import Backend, Result
from mlx_guarded_llm.results import Collector

PROMPT = "Why is the sky blue? Answer in a few sentences."


def answer(backend: Backend, model: str, *, max_tokens: int, die_after: int | None) -> Result:
    """Stream an answer to the terminal.

    Args:
        die_after: number of pieces after which the engine is killed; None lets it live.
    """
    collector = Collector()
    for count, chunk in enumerate(
        backend.stream(model, PROMPT, max_tokens=max_tokens, temperature=0.7, seed=7), start=1
    ):
        print(chunk.text, end="", flush=True)
        collector.add(chunk)
        if count == die_after and backend.worker_pid is not None:
            print(f" [SIGABRT to {backend.worker_pid}] ", end="", flush=True)
            os.kill(backend.worker_pid, signal.SIGABRT)
    print("\n")
    return collector.result()


def main(model: str = "smollm2-135m", *, max_tokens: int = 64) -> None:
    """Ask twice, kill once, compare."""
    with Backend() as backend:
        undisturbed = answer(backend, model, max_tokens=max_tokens, die_after=None)
        resumed = answer(backend, model, max_tokens=max_tokens, die_after=max_tokens // 4)
        print(backend.explain(resumed.guard.request_id))
        guard = resumed.guard
        print(f"\nresumed: {guard.resumed}, after {guard.recovering:.2f} s")
        same = resumed.text == undisturbed.text
        print("The two answers are the same." if same else "The two answers differ.")


if __name__ == "__main__":
    main(*sys.argv[1:])
