"""The incident that this library was made for: a chain of thought whose model fails.

    python docs/examples/extended_thinking.py [MODEL] [FALLBACK]

Three steps build on each other. First the model fails twice and then answers. Then its server
really dies twice, from the same cause as in the incident. Then the model is gone for good. The
chain ends with the model's own answer, or knows that it did not get it.
"""

# ruff: noqa: T201 - a script that prints
from __future__ import annotations

import subprocess
import sys
from typing import Any

from mlx_guarded_llm import (
    Backend,
    Candidate,
    Catalog,
    GuardedLLM,
    Provenance,
    Result,
    RetryPolicy,
    taint,
)
from mlx_guarded_llm.errors import EngineDied, FallbackRefused
from mlx_guarded_llm.fallback import Call
from mlx_guarded_llm.testing.faulty import CUT_THINKING, FaultyBackend, Options

QUESTION = "What is 6 times 7?"
STEPS = ("Make a plan.", "Think step by step.", "Now give the answer.")
GONE = "/a/model/that/is/gone"
REAL = Options({})  # no fault: the model's own answer, with the options it was asked with


def extended_thinking(llm: GuardedLLM) -> list[Result]:
    """Run the steps; each sees the answers of the steps before it.

    Returns:
        The answers of all steps; the last one is the chain's.

    Raises:
        FallbackRefused: only another model answered a step; its answer is in `.answer`.
    """
    messages: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
    results: list[Result] = []
    for step in STEPS:
        messages.append({"role": "user", "content": step})
        results.append(llm.generate(messages))
        messages.append({"role": "assistant", "content": results[-1].text})
    return results


class CrashingServer(Candidate):
    """A server without a guard: while it answers, a load on a second thread kills it.

    Where MLX itself would survive that, the library's witness aborts the process, as
    Metal does.

    Args:
        name: the candidate's name.
        model: folder of the model that answers.
        other: folder of the model that is loaded meanwhile.
        deaths: how often the server dies, before the load is made after the answer.
    """

    def __init__(self, name: str, model: str, other: str, *, deaths: int = 2) -> None:
        self.name = name
        self.codes: list[int] = []
        self._command = [sys.executable, "-m", "mlx_guarded_llm.testing.naive", model, other]
        self._deaths = deaths

    def generate(self, call: Call) -> Result:
        """Answer, or die trying."""
        late = [] if len(self.codes) < self._deaths else ["--serial"]
        asked = ["--prompt", call.prompt] if isinstance(call.prompt, str) else []
        ended = subprocess.run(
            [*self._command, *asked, "--at", "2", *late],
            capture_output=True,
            text=True,
            check=False,
            timeout=min(call.timeout, 300.0),
        )
        self.codes.append(ended.returncode)
        if ended.returncode:
            raise EngineDied(f"the server died with {ended.returncode}.")
        guard = Provenance(
            request_id=call.request_id, requested_model=self.name, served_model=self.name
        )
        return Result(text=ended.stdout.strip(), guard=guard)


def fails_twice(backend: Backend, model: str, fallback: str, **options: Any) -> list[Result]:
    """Each step's first two attempts fail: the engine dies, the thinking is cut off."""
    faults: list[Any] = [EngineDied("the worker died of SIGABRT."), CUT_THINKING, REAL]
    faulty: Any = FaultyBackend(backend, {model: faults * len(STEPS)})
    return extended_thinking(guarded(faulty, model, fallback, **options))


def guarded(backend: Any, model: str | Candidate, fallback: str, **options: Any) -> GuardedLLM:
    """Three attempts at the model, a fallback, and no pauses: there is nothing to wait for."""
    retry = RetryPolicy(attempts=3, initial_wait=0, jitter=0)
    return GuardedLLM(backend, model, fallbacks=[fallback], retry=retry, **options)


def show(results: list[Result]) -> None:
    """Print each step, the attempts at it, and what it rests on."""
    for result, step in zip(results, taint(results), strict=True):
        tried = ", ".join(f"{a.model}: {a.outcome}" for a in result.guard.attempts)
        print(f"  {result.text!r}\n    {tried}")
        if step:
            print(f"    not as asked: {step.own}, rests on {step.inherited}")


def main(model: str = "smollm2-135m-bf16", fallback: str = "smollm2-135m") -> None:
    """The incident four times, each time with a different end."""
    with Backend() as backend:
        brief: dict[str, Any] = {"stop": [".", "\n"]}  # a sentence for each step

        print("The model fails twice at each step; the answers are its own:")
        show(fails_twice(backend, model, fallback, **brief))

        print("Its server dies twice; the answer is its own:")
        server = CrashingServer(model, folder_of(model), folder_of(fallback))
        show([guarded(backend, server, fallback).generate(QUESTION)])
        print(f"    exit codes {server.codes}")

        print("It is gone for good; the chain stops:")
        try:
            extended_thinking(guarded(backend, GONE, fallback, **brief))
        except FallbackRefused as refused:
            print(f"  FallbackRefused: {refused}\n  it carries {refused.answer.text!r}")

        print("It is gone for good, and fallbacks are marked:")
        show(extended_thinking(guarded(backend, GONE, fallback, on_fallback="mark", **brief)))


def folder_of(name: str) -> str:
    """The folder of a model, downloaded if necessary."""
    catalog = Catalog()
    return str(catalog.ensure(catalog.resolve(name)).path)


if __name__ == "__main__":
    main(*sys.argv[1:])
