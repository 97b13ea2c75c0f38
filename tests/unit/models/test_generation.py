"""A model's own sampling defaults, whatever its generation_config.json holds."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_guarded_llm import Catalog
from mlx_guarded_llm.errors import ModelInvalid
from mlx_guarded_llm.models.generation import own_sampling
from mlx_guarded_llm.params import NEUTRAL, SamplingParams
from mlx_guarded_llm.testing.tiny import make_tiny_model

GREEDY = dict(NEUTRAL)


@pytest.mark.parametrize(
    ("generation", "own"),
    [
        ({}, {}),
        ({"do_sample": True}, {"temperature": 1.0}),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20},
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
        ),
        ({"temperature": 0.6, "top_k": 20.0}, {"temperature": 0.6, "top_k": 20}),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, {}),
        ({"top_p": 0.9, "top_k": 50}, {}),
        ({"do_sample": False, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"do_sample": "yes", "temperature": 0.6}, {}),
    ],
)
def test_what_the_file_says(generation: dict[str, Any], own: dict[str, Any]) -> None:
    assert own_sampling(generation, "m") == own


def test_what_is_out_of_range_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    wrong = {"temperature": -1, "top_p": "0.9", "top_k": [3], "min_p": 2, "repetition_penalty": 0}
    assert own_sampling({"do_sample": True, **wrong}, "m") == {"temperature": 1.0}
    assert [name for name in wrong if name in caplog.text] == list(wrong)


def test_a_do_sample_that_is_neither_is_told(caplog: pytest.LogCaptureFixture) -> None:
    neither: list[Any] = [1, "yes", [True], {}]
    for wrong in neither:
        caplog.clear()
        assert own_sampling({"do_sample": wrong, "temperature": 0.6}, "m") == {}
        assert "do_sample is " in caplog.text
    caplog.clear()
    for right in (True, False, None):
        own_sampling({"do_sample": right, "temperature": 0.6}, "m")
    assert caplog.text == ""


def huge(file: Path) -> None:
    file.touch()
    os.truncate(file, 2**40)


@pytest.mark.parametrize(
    "put",
    [
        lambda file: file.write_text("[1]"),
        lambda file: file.write_text("null"),
        lambda file: file.write_text(""),
        lambda file: file.write_text('{"a":' * 10**5),
        lambda file: file.write_text('{"top_k": %s}' % ("9" * 5000)),
        lambda file: file.write_text('{"eos_token_id": NaN}'),
        lambda file: file.write_bytes(b"\xff\xfe\xfd"),
        lambda file: file.symlink_to("/dev/zero"),
        lambda file: file.symlink_to("nowhere"),
        lambda file: file.symlink_to(file.name),
        lambda file: file.mkdir(),
        os.mkfifo,
        huge,
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, put: Callable[[Path], Any]) -> None:
    folder = make_tiny_model(tmp_path / "m")
    file = folder / "generation_config.json"
    file.unlink(missing_ok=True)
    put(file)
    catalog = Catalog(cache_dir=tmp_path / "cache")
    with pytest.raises(ModelInvalid, match=r"generation_config\.json"):
        catalog.find(catalog.resolve(folder))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(["do_sample", *NEUTRAL]), JSON))
def test_whatever_it_holds_the_result_can_be_sampled_with(generation: dict[str, Any]) -> None:
    used = SamplingParams().with_defaults(own_sampling(generation, "m")).sampling
    for value in used.values():
        assert value is not None and not isinstance(value, bool) and math.isfinite(value)


def test_the_callers_values_win() -> None:
    own = {"temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.1}
    assert SamplingParams().with_defaults({}).sampling == GREEDY
    assert SamplingParams().with_defaults(own).sampling == {**GREEDY, **own}
    assert SamplingParams(temperature=0.0).with_defaults(own).sampling["temperature"] == 0
    params = SamplingParams(temperature=0.1, top_p=1.0, top_k=3, min_p=0.2, repetition_penalty=1)
    assert params.with_defaults(own) is params
