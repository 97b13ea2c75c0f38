"""What the contract tests of the backend have in common. Functions for `run` pickle."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable
from typing import Any

from mlx_guarded_llm import Backend, Chunk, Event

PATIENCE = 60.0  # seconds; only a hang takes so long
TEXT = "The quick brown fox jumps over the lazy dog."  # what a scripted model says


def wait_until(condition: Callable[[], Any]) -> None:
    """Wait for something that another thread brings about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.002)


def events(backend: Backend, kind: str, **fields: Any) -> list[Event]:
    """The events of one kind ("load." means all of loads) whose fields are these."""
    return [
        event
        for event in backend.events()
        if (event.kind.startswith(kind) if kind.endswith(".") else event.kind == kind)
        and all(getattr(event, name) == value for name, value in fields.items())
    ]


def wait_for(backend: Backend, kind: str, **fields: Any) -> Event:
    """The first such event, once it is there."""
    wait_until(lambda: events(backend, kind, **fields))
    return events(backend, kind, **fields)[0]


def text_of(chunks: Iterable[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def tokens_of(answer: Any) -> list[int]:
    """Token ids of a result that was asked for with `logprobs=True`."""
    return [logprob.token for logprob in answer.logprobs]


def limit_memory(backend: Backend, limit: int = 2 * 2**30) -> None:
    """Bytes of address space that its worker may take. On Linux only.

    More would let one call of C, which keeps Python from showing life, take too long.
    """
    assert backend.worker_pid is not None
    resource.prlimit(backend.worker_pid, resource.RLIMIT_AS, (limit, limit))


# ---- for backend.run: called on the MLX thread --------------------------------------------


def active_memory() -> int:
    """Bytes that MLX holds."""
    import gc

    import mlx.core as mx

    mx.synchronize()
    gc.collect()
    return int(mx.get_active_memory())


def raw_tokens(folder: str, text: str, max_tokens: int, **options: Any) -> list[int]:
    """What plain mlx-lm generates for one user message, greedily."""
    import mlx_lm

    model, tokenizer, *_ = mlx_lm.load(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True
    )
    answer = mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=max_tokens, **options)
    return [response.token for response in answer]
