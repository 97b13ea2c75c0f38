"""The same request gives the same tokens: alone, beside others, and again."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import tokens_of

MIXED: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.5, "top_k": 20},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.2, "top_k": 50, "top_p": 0.8, "min_p": 0.01},
    {"presence_penalty": 1.0},
    {"temperature": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
]


def requests(seed: int) -> list[dict[str, Any]]:
    """Sixteen of mixed parameters, lengths and prompts."""
    rng = random.Random(seed)
    return [
        {
            "prompt": "Tell me " + "more " * (i % 5) + str(i),
            "max_tokens": rng.choice([5, 9, 14, 20]),
            "seed": 1000 + i,
            "logprobs": True,
            **MIXED[i % len(MIXED)],
        }
        for i in range(16)
    ]


def together(backend: Backend, model: str, wanted: list[dict[str, Any]]) -> list[list[int]]:
    with ThreadPoolExecutor(len(wanted)) as pool:
        results = pool.map(lambda options: backend.generate(model, **options), wanted)
        return [tokens_of(result) for result in results]


@pytest.mark.parametrize("prefix_cache", [0, "64MiB"])
def test_beside_others_as_alone(
    make_backend: MakeBackend, tiny: MakeModel, prefix_cache: int | str
) -> None:
    backend = make_backend(prefix_cache=prefix_cache)
    wanted = requests(seed=1)
    alone = [tokens_of(backend.generate(tiny(), **options)) for options in wanted]
    assert together(backend, tiny(), wanted) == alone
    order = list(range(len(wanted)))
    random.Random(2).shuffle(order)
    again = together(backend, tiny(), [wanted[i] for i in order])
    assert [again[order.index(i)] for i in range(len(wanted))] == alone


def test_few_at_a_time(make_backend: MakeBackend, tiny: MakeModel) -> None:
    wanted = requests(seed=3)
    alone = []
    for options in wanted[:4]:
        with make_backend() as backend:
            alone.append(tokens_of(backend.generate(tiny(), **options)))
    assert together(make_backend(max_active=2), tiny(), wanted)[:4] == alone


def test_after_a_reload_and_in_another_backend(make_backend: MakeBackend, tiny: MakeModel) -> None:
    options: dict[str, Any] = {"max_tokens": 16, "temperature": 1.0, "seed": 7}
    backend = make_backend()
    first = backend.generate(tiny(), "Hello", **options).text
    backend.unload(tiny())
    assert backend.generate(tiny(), "Hello", **options).text == first
    assert make_backend().generate(tiny(), "Hello", **options).text == first


def test_a_seed_that_was_drawn_reproduces(backend: Backend, tiny: MakeModel) -> None:
    drawn = [backend.generate(tiny(), "Hello", max_tokens=16, temperature=1.5) for _ in range(3)]
    assert len({result.text for result in drawn}) == 3
    for result in drawn:
        again = backend.generate(
            tiny(), "Hello", max_tokens=16, temperature=1.5, seed=result.guard.seed
        )
        assert again.text == result.text and again.guard.seed == result.guard.seed


def test_extreme_seeds(backend: Backend, tiny: MakeModel) -> None:
    texts = {
        backend.generate(tiny(), "Hello", max_tokens=16, temperature=1.5, seed=seed).text
        for seed in (0, 1, 2**32, 2**64 - 1)
    }
    assert len(texts) == 4
