"""Where a call says nothing a model is sampled as its own files say."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from mlx_guarded_llm import Backend, GuardedLLM, RetryPolicy
from mlx_guarded_llm.params import NEUTRAL
from tests.conftest import MakeModel
from tests.engine._backend import text_of

HUGE = "9" * 400
OWN = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.05}


@pytest.fixture
def own(tiny: MakeModel, tmp_path: Path) -> Callable[..., str]:
    """A tiny model with a generation_config.json of these values."""

    def make(**generation: Any) -> str:
        folder = tmp_path / f"own{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny(), folder)
        (folder / "generation_config.json").write_text(json.dumps(generation))
        return str(folder)

    return make


def test_none_is_the_models_own(backend: Backend, own: Callable[..., str]) -> None:
    model = own(**OWN)
    result = backend.generate(model, "Hello", max_tokens=12)
    used: dict[str, Any] = {
        "temperature": 0.9,
        "top_p": 0.95,
        "top_k": 0,
        "min_p": 0,
        "repetition_penalty": 1.05,
    }
    assert result.guard.sampling == used
    card = backend.card(model)
    assert card is not None and card.sampling == {k: v for k, v in OWN.items() if k != "do_sample"}
    same = backend.generate(model, "Hello", max_tokens=12, seed=result.guard.seed, **used)
    assert same.text == result.text, "its seed and its sampling give it again"
    others = {backend.generate(model, "Hello", max_tokens=12, seed=n).text for n in range(4)}
    assert len(others) > 1


def test_the_callers_values_win(backend: Backend, own: Callable[..., str], tiny: MakeModel) -> None:
    model = own(**OWN)
    greedy = backend.generate(model, "Hello", max_tokens=12, temperature=0, repetition_penalty=1.0)
    plain = backend.generate(tiny(), "Hello", max_tokens=12)
    assert greedy.text == plain.text and plain.guard.sampling == NEUTRAL
    assert greedy.guard.sampling["temperature"] == 0


def test_a_grammar_is_sampled_alike(backend: Backend, own: Callable[..., str]) -> None:
    model = own(do_sample=True, temperature=1.5)
    texts = {backend.generate(model, "Hi", regex="[a-z]{8}", seed=n).text for n in range(3)}
    assert len(texts) == 3 and all(text.isalpha() and len(text) == 8 for text in texts)


def test_broken_values_are_not_followed(backend: Backend, own: Callable[..., str]) -> None:
    model = own(do_sample=True, temperature=-3, top_k="all", top_p=None)
    assert backend.generate(model, "Hi", max_tokens=2).guard.sampling == {
        **NEUTRAL,
        "temperature": 1.0,
    }


@pytest.mark.parametrize(
    "text",
    [
        '{"do_sample": true, "temperature": NaN, "top_p": Infinity, "min_p": -Infinity}',
        f'{{"temperature": {HUGE}, "top_k": {HUGE}, "top_p": 1e999}}',
        '{"temperature": {"a": [1]}, "top_k": [[3]], "do_sample": {"x": 1}}',
        f'{{"eos_token_id": {HUGE}}}',
        '{"do_sample": true, "temperature": 5e-324}',
        '{"do_sample": true, "top_p": 5e-324}',
        '{"do_sample": true, "min_p": 1}',
        '{"repetition_penalty": 1e-40}',
    ],
)
def test_hostile_values_leave_it_an_answer(
    backend: Backend, own: Callable[..., str], tiny: MakeModel, text: str
) -> None:
    model = own()
    (Path(model) / "generation_config.json").write_text(text)
    result = backend.generate(model, "Hello", max_tokens=6, seed=1)
    assert result.guard.sampling["temperature"] in (0, 1, 5e-324)
    if "NaN" not in text:  # that one samples; these all leave the likeliest token alone
        assert result.text == backend.generate(tiny(), "Hello", max_tokens=6).text


@pytest.mark.parametrize("isolation", ["process"])
@pytest.mark.parametrize("own_worker", [True])
@pytest.mark.parametrize("seed", [5, None])
@pytest.mark.parametrize("generation", [OWN, {"do_sample": True, "top_k": 30, "min_p": 0.001}])
def test_an_answer_that_goes_on_is_sampled_as_it_was(
    backend: Backend, own: Callable[..., str], generation: dict[str, Any], seed: int | None
) -> None:
    model = own(**generation)
    stream = backend.stream(model, "Hello", max_tokens=200, seed=seed)
    first = next(stream)
    assert backend.worker_pid is not None
    os.kill(backend.worker_pid, signal.SIGKILL)
    # Its defaults are those that it began with, whatever the file says now.
    (Path(model) / "generation_config.json").write_text('{"do_sample": false}')
    chunks = [first, *stream]
    guard = chunks[-1].guard
    assert guard is not None and guard.resumed and seed in (guard.seed, None)
    used: dict[str, Any] = dict(guard.sampling)
    own_values = {key: value for key, value in generation.items() if key != "do_sample"}
    assert used == {**NEUTRAL, "temperature": 1.0, **own_values}
    whole = backend.generate(model, "Hello", max_tokens=200, seed=guard.seed, **used)
    assert not whole.guard.resumed and text_of(chunks) == whole.text


def test_a_remedy_starts_from_what_was_used(backend: Backend, own: Callable[..., str]) -> None:
    llm = GuardedLLM(
        backend,
        own(**OWN),
        max_tokens=4,
        accept=lambda result: False,
        retry=RetryPolicy(attempts=2),
        on_degraded="mark",
    )
    first, second = llm.generate("Hello").guard.attempts
    assert first.changed == {} and second.changed.keys() == {"seed"}, "it was not greedy"


def test_a_class_of_pydantics_is_a_schema(backend: Backend, tiny: MakeModel) -> None:
    class City(BaseModel):
        big: bool

    for ask in (backend.generate, lambda m, *a, **o: GuardedLLM(backend, m).generate(*a, **o)):
        City.model_validate_json(ask(tiny(), "A city", schema=City, max_tokens=40).text)


def test_numbers_of_numpy(backend: Backend, tiny: MakeModel) -> None:
    given: dict[str, Any] = {
        "temperature": np.float32(0.5),
        "top_k": np.int64(4),
        "max_tokens": np.int32(3),
    }
    result = backend.generate(
        tiny(), "Hello", **given, seed=np.uint8(1), logprobs=np.bool_(True), logit_bias={
            np.int64(3): np.float64(1)
        },
    )  # fmt: skip
    assert result.usage.completion_tokens == 3 and len(result.logprobs) == 3
    assert type(result.guard.sampling["top_k"]) is int
    assert json.dumps(result.guard.as_dict())
