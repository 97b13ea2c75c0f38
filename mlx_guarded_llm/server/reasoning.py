"""How much a model is to think, as clients say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def effort_options(effort: str, template_kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An effort as options of `GuardedLLM`: templates that know of degrees are told it.

    Args:
        effort: "none", or any word that a template may know.
        template_kwargs: other variables of the template, which win.
    """
    if effort == "none":
        return {"thinking": False, "template_kwargs": template_kwargs}
    variables = {"reasoning_effort": effort, **(template_kwargs or {})}
    return {"thinking": True, "template_kwargs": variables}
