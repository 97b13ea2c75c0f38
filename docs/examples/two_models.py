"""A planner and a worker: the large model must be loaded while the small one is at work.

    python docs/examples/two_models.py [PLANNER] [WORKER]

The worker collects notes. Meanwhile the planner is asked for a plan, so its model must be
loaded: the load waits `load_wait` seconds for the worker, then pauses it between two tokens.
Then the worker carries out the plan. The record says who waited for whom.
"""

# ruff: noqa: T201 - a script that prints
from __future__ import annotations

import asyncio
import sys

from mlx_guarded_llm import Backend, GuardedLLM, Result
from mlx_guarded_llm.record import overlaps
from mlx_guarded_llm.results import Collector

NOTES = "Write down what one should know before a walk in the mountains."
PLAN = "Make a plan of three short steps for an article about a walk in the mountains."
ARTICLE = "Write the article in a few sentences.\n\nPlan:\n{plan}\n\nNotes:\n{notes}"


async def write(planner: GuardedLLM, worker: GuardedLLM) -> tuple[Result, Result, Result]:
    """Notes and a plan at the same time, then the article.

    Returns:
        The three answers, each a full answer of the model that was asked; anything else
        would have been an error.
    """
    collector = Collector()
    planning: asyncio.Task[Result] | None = None
    async for chunk in worker.astream(NOTES):
        collector.add(chunk)
        if planning is None:  # the worker has begun: now ask the other model
            planning = asyncio.create_task(planner.agenerate(PLAN))
    assert planning is not None
    notes, plan = collector.result(), await planning
    article = await worker.agenerate(ARTICLE.format(plan=plan.text, notes=notes.text))
    return notes, plan, article


def show(backend: Backend, answers: tuple[Result, Result, Result]) -> None:
    """Print what came out, and who waited for whom."""
    for name, answer in zip(("notes", "plan", "article"), answers, strict=True):
        guard = answer.guard
        print(f"--- {name} by {guard.served_model}:\n{answer.text}\n")
        print(
            f"    deferred {guard.deferred:.2f} s, loading {guard.loading:.2f} s, "
            f"paused {guard.paused:.2f} s, decoding {guard.decode:.2f} s"
        )
        print(backend.explain(guard.request_id), end="\n\n")


def main(
    planner: str = "smollm2-135m-bf16",
    worker: str = "smollm2-135m",
    *,
    max_tokens: int = 48,
) -> None:
    """Run the chain and check that nothing overlapped."""
    with Backend(load_wait=1.0) as backend:
        answers = asyncio.run(
            write(
                GuardedLLM(backend, planner, max_tokens=max_tokens),
                GuardedLLM(backend, worker, max_tokens=max_tokens),
            )
        )
        show(backend, answers)
        assert overlaps(backend.timeline()) == [], "a load ran beside a generation"
        print("No load overlapped a generation.")


if __name__ == "__main__":
    main(*sys.argv[1:])
