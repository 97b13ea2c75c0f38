from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm import Backend, Catalog
from mlx_guarded_llm.backend.options import sort_options
from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.params import SamplingParams


@pytest.mark.parametrize(
    "option",
    [
        "isolation",
        "load_wait",
        "fairness_window",
        "on_load_deadline",
        "max_queue",
        "max_active",
        "timeout",
        "offline",
        "record_size",
        "stall_timeout",
        "spare_worker",
    ],
)
def test_none_where_it_could_mean_two_things_is_asked_for(option: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {option: None, "catalog": Catalog(cache_dir=tmp_path)}
    with pytest.raises(InvalidRequest, match=f"{option} is None; it must be") as caught:
        Backend(**options)
    assert caught.value.hint == f"Leave {option} out for its default."


def test_what_was_sorted_once_is_not_copied_again() -> None:
    given = {"type": "object", "properties": {}}
    schema = sort_options({"schema": given}).sampling["schema"]
    assert schema == given and schema is not given
    assert sort_options({"schema": schema}).sampling["schema"] is schema
    assert SamplingParams(schema=schema).schema is schema


def test_an_empty_mapping_of_the_callers_is_not_kept() -> None:
    bias: dict[int, float] = {}
    params = SamplingParams(logit_bias=bias)
    bias[1] = 2.0
    assert params.logit_bias == {}


def test_options_are_sorted_by_what_they_are_for_and_none_says_nothing() -> None:
    found = sort_options({"max_tokens": 3, "raw": True, "kv_bits": 8, "seed": None})
    assert (found.sampling, found.prompting, found.loading) == (
        {"max_tokens": 3},
        {"raw": True},
        {"kv_bits": 8},
    )
