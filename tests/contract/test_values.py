"""Models as values: what their constructors take, copies, pickles."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from mlx_guarded_llm import Backend
from mlx_guarded_llm.params import SamplingParams
from tests.conftest import MakeModel

from ._each import each_adapter
from ._faces import Face

SETTINGS: dict[str, Any] = {
    "max_tokens": 9,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 7,
    "stop": ["x"],
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "penalty_window": 8,
    "logit_bias": {3: 1.0},
    "logprobs": True,
    "top_logprobs": 2,
    "thinking_budget": 64,
    "thinking": False,
    "template_kwargs": {"a": 1},
    "timeout": 9.0,
    "priority": "batch",
    "on_fallback": "mark",
    "on_degraded": "mark",
    "hold_back": 5,
    "constrain": False,
    "kv_bits": 8,
    "context_window": 256,
}


@each_adapter
@pytest.mark.parametrize("setting", SETTINGS)
def test_each_setting_is_one_of_every_package(face: Face, backend: Backend, setting: str) -> None:
    llm = face.make(backend, "m", **{setting: SETTINGS[setting]})
    assert getattr(llm, setting) == SETTINGS[setting]


def test_every_way_to_sample_is_a_setting() -> None:
    forms = {"schema", "regex", "grammar"}  # of one call
    assert {f.name for f in dataclasses.fields(SamplingParams)} - forms <= SETTINGS.keys()


@each_adapter
async def test_one_stop_string_needs_no_list(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    llm = face.make(backend, scripted("The capital is Paris."), stop="capital")
    assert (await face.ask(llm, "Where?")).text == "The "
    assert (await face.ask(llm, "Where?", stop="Paris")).text == "The capital is "


@each_adapter
def test_copies_share_the_backend_and_pickles_leave_it_behind(face: Face, backend: Backend) -> None:
    llm = face.make(backend, "m", seed=3)
    for other in (copy.copy(llm), copy.deepcopy(llm), llm.model_copy(deep=True)):
        assert other.backend is backend and other.seed == 3
    back = pickle.loads(pickle.dumps(llm))
    assert back.backend is None and back.seed == 3
    assert llm.backend is backend
