"""The sampling defaults of a model, from its generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequest
from ..json_values import shown
from ..logs import get_logger
from ..params import NEUTRAL, SamplingParams

logger = get_logger("models")


def own_sampling(generation: Mapping[str, Any], name: str) -> dict[str, float]:
    """The model's own defaults for the fields of `SamplingParams.sampling`, if it has any.

    `do_sample: false` means greedy, whatever else is given, and `true` without a temperature means
    1. Without `do_sample` it depends on the temperature. Values that are not numbers, or out of
    range, are left out with a warning.

    Args:
        generation: of the file, or empty.
        name: the model's, for the warning.
    """
    own: dict[str, float] = {}
    for option in NEUTRAL:
        value = generation.get(option)
        if value is None:
            continue
        if option == "top_k" and isinstance(value, float) and value.is_integer():
            value = int(value)
        alone: dict[str, Any] = {option: value}
        try:
            SamplingParams(**alone)
        except InvalidRequest as error:
            logger.warning("generation_config.json of %s is not followed: %s", name, error)
        else:
            own[option] = value
    samples = generation.get("do_sample")
    if not isinstance(samples, bool | None):
        logger.warning(
            "generation_config.json of %s is not followed: do_sample is %s; it must be true or "
            "false. The model is greedy.",
            name,
            shown(samples),
        )
    if samples is True:
        own.setdefault("temperature", 1.0)
    elif samples is not None or "temperature" not in own:  # greedy, for which filters mean nothing
        own = {key: own[key] for key in own if key == "repetition_penalty"}
    return own
