"""No model that mlx-lm computes right is refused for what its config.json says."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_guarded_llm.models.architectures import check_supported, source_of
from mlx_guarded_llm.models.config import spell_out
from tests.unit.models.real_configs import CONFIGS

_INNER = "text_config"


def newer(config: dict[str, Any]) -> dict[str, Any]:
    """The same as transformers 5 writes it: all of RoPE in one place."""
    spelt = dict(config)
    if isinstance(spelt.get(_INNER), dict):
        spelt[_INNER] = newer(spelt[_INNER])
    local = "rope_local_base_freq" in spelt
    if local or "rope_parameters" in spelt or not isinstance(spelt.get("rope_theta"), int | float):
        return spelt
    scaling = spelt.pop("rope_scaling", None) or {"rope_type": "default"}
    parameters = {"rope_theta": spelt.pop("rope_theta"), **scaling}
    if "partial_rotary_factor" in spelt:
        parameters["partial_rotary_factor"] = spelt.pop("partial_rotary_factor")
    return {**spelt, "rope_parameters": parameters}


def theta(config: dict[str, Any]) -> object:
    return config.get(_INNER, config).get("rope_theta")


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_not_refused_in_either_spelling(name: str) -> None:
    kind, given = CONFIGS[name]
    config = {"model_type": kind, **given}
    check_supported(config)
    spelt = spell_out(config, source_of)
    again = spell_out(newer(config), source_of)
    assert theta(again) == theta(spelt)
    for other in (spelt, again):  # what was spelt out says the same
        assert theta(spell_out(other, source_of)) == theta(spelt)
