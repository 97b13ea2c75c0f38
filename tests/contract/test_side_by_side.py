"""Both frameworks at once on one backend: nothing overlaps, and nobody gets another's answer."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlx_guarded_llm.errors import MemoryRefused
from mlx_guarded_llm.record import overlaps
from tests.conftest import MakeBackend, MakeModel
from tests.engine._backend import events

from ._each import FACES
from ._faces import Answer, Face

ADAPTERS = [face for face in FACES if face.library != "direct"]


def ask_in_a_thread(face: Face, llm: Any, text: str) -> Answer:
    return asyncio.run(face.ask(llm, text))


async def test_eight_calls_on_two_models_through_both_adapters(
    make_backend: MakeBackend, scripted: MakeModel
) -> None:
    # So impatient that the second model's load pauses the first one's answers.
    backend = make_backend(load_wait=0.01, fairness_window=0.01)
    texts = ["The first says this. " * 8, "And the second says that! " * 8]
    models = [scripted(text) for text in texts]
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(8) as threads:
        asked = []
        for number, face in enumerate(ADAPTERS):  # eight of them
            llm = face.make(backend, models[number % 2], max_tokens=900)
            asked.append(loop.run_in_executor(threads, ask_in_a_thread, face, llm, f"No. {number}"))
        answers = await asyncio.gather(*asked)
    assert len(answers) == 8
    for number, answer in enumerate(answers):
        assert answer.text == texts[number % 2]
        assert answer.model == models[number % 2] and answer.guard.as_asked
    assert overlaps(backend.timeline()) == []


async def test_both_adapters_in_one_event_loop(
    make_backend: MakeBackend, scripted: MakeModel
) -> None:
    backend = make_backend(max_active=2)
    texts = ["The first says this.", "And the second says that!"]
    models = [scripted(text) for text in texts]
    faces = [face for face in ADAPTERS if face.way.startswith("a")] * 2
    asked = [
        face.ask(face.make(backend, models[number % 2]), f"No. {number}")
        for number, face in enumerate(faces)
    ]
    answers = await asyncio.gather(*asked)
    assert [answer.text for answer in answers] == texts * 4
    assert overlaps(backend.timeline()) == []


async def test_models_that_do_not_fit_together_take_turns(
    make_backend: MakeBackend, tiny: MakeModel
) -> None:
    models = [tiny(seed=seed) for seed in (1, 2)]
    small = make_backend(prefix_cache=0, memory_budget=room_for_one(make_backend, models[0]))
    asked = [
        face.ask(face.make(small, models[number % 2], max_tokens=6), "Hi")
        for number, face in enumerate(f for f in ADAPTERS if f.way.startswith("a"))
    ]
    answers = await asyncio.gather(*asked)
    assert [answer.model for answer in answers] == models * 2
    loads = [event.model for event in events(small, "load.finished")]
    assert len(loads) > 1 and set(loads) == set(models)


def room_for_one(make_backend: MakeBackend, model: str) -> int:
    """A budget for one model and a short request, as refusals tell it."""
    budget = 1
    while True:
        with make_backend(prefix_cache=0, memory_budget=budget) as backend:
            try:
                backend.generate(model, "Hi", max_tokens=6)
            except MemoryRefused as error:
                budget = error.needed_bytes
            else:
                return budget + 256 * 1024
