"""The options of one call, as LangChain's callers give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.grammar.normalise import unwrapped
from mlx_guarded_llm.models import LOAD_OPTIONS
from mlx_guarded_llm.models.naming import spelled
from mlx_guarded_llm.params import SamplingParams
from mlx_guarded_llm.request import PromptRequest

from .tools import openai_tool

OneOrMore = Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]
ModelName = Annotated[str, BeforeValidator(spelled)]
SAMPLING = frozenset(SamplingParams.__dataclass_fields__)
_PROMPTING = frozenset(PromptRequest.__dataclass_fields__) - {"prompt", "raw", "_"}
_OWN = frozenset(
    {"model", "timeout", "request_id", "accept", "priority", "response_format", *LOAD_OPTIONS}
)
_SWITCHES = frozenset({"stream"})  # LangChain's own, which it leaves in the arguments


def call_options(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the options of one call with those of the chat model.

    Only names are checked here; `GuardedLLM` checks values.

    Args:
        defaults: the chat model's.
        given: the call's, or those of `bind`; they win, and None counts as not given.

    Returns:
        Arguments for `GuardedLLM.generate`, and "model" when the call names one.

    Raises:
        InvalidRequest: there is no such option, or one is wrong.
    """
    said = {k: v for k, v in given.items() if v is not None and k not in _SWITCHES}
    if unknown := sorted(said.keys() - SAMPLING - _PROMPTING - _OWN):
        known = ", ".join(sorted(SAMPLING | _PROMPTING | _OWN))
        raise InvalidRequest(f"unknown option {unknown[0]!r}.", hint=f"There are: {known}.")
    options = {**defaults, **said}
    if (form := options.pop("response_format", None)) is not None:
        options |= _schema_of(form)
    if isinstance(options.get("schema"), Mapping):
        options["schema"] = unwrapped(options["schema"]) or options["schema"]
    tools = [openai_tool(tool) for tool in options.pop("tools", None) or ()]
    choice = options.pop("tool_choice", None)
    if tools:
        options["tools"] = tools
        options["tool_choice"] = tool_choice(choice, tools)
        if options["tool_choice"] == "required":
            # A small model that has to call goes on calling, the same thing again.
            options.setdefault("parallel_tool_calls", False)
    elif choice not in (None, False, "auto", "none"):
        raise InvalidRequest(f"tool_choice is {choice!r}, but there are no tools.")
    return options


def tool_choice(choice: object, tools: Sequence[Mapping[str, Any]]) -> str | dict[str, Any] | None:
    """A tool choice in OpenAI's form, in whichever way LangChain's callers give it.

    Args:
        choice: "auto", "none", "any" or "required", a tool's name, a mapping that has
            one, True (any of them) or False and None (the model decides).
        tools: in OpenAI's form.

    Raises:
        InvalidRequest: no tool has this name.
    """
    if choice is None or choice is False:
        return None
    if choice is True or choice in ("any", "required"):
        return "required"
    if choice in ("auto", "none"):
        return str(choice)
    name: object = choice
    if isinstance(choice, Mapping):
        name = (choice.get("function") or choice).get("name")
    names = [tool["function"]["name"] for tool in tools]
    if name not in names:
        raise InvalidRequest(
            f"tool_choice is {choice!r}, and no tool has that name.",
            hint=f"It can be 'auto', 'any', 'none' or one of {', '.join(map(repr, names))}.",
        )
    return {"type": "function", "function": {"name": name}}


def _schema_of(form: object) -> dict[str, Any]:
    """OpenAI's `response_format`, which LangChain's agents use."""
    kind = form.get("type") if isinstance(form, Mapping) else None
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"schema": {"type": "object"}}
    if isinstance(form, Mapping) and kind == "json_schema":
        inner = form.get("json_schema")
        if isinstance(inner, Mapping) and isinstance(inner.get("schema"), Mapping):
            return {"schema": inner["schema"]}
    raise InvalidRequest(
        f"response_format is {form!r}; its type must be 'text', 'json_object' or 'json_schema'.",
        hint='{"type": "json_schema", "json_schema": {"schema": {...}}} has a schema.',
    )
