"""The pages of docs/reference/ have every public name, and all that is public has a docstring."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from docs.hooks import reference
from mlx_guarded_llm.record import Kind
from mlx_guarded_llm.record.events import KINDS
from mlx_guarded_llm.server.settings import Key, ModelEntry, Retry, Settings

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "reference"
# What these modules export is public.
MODULES = [
    "mlx_guarded_llm",
    "mlx_guarded_llm.backend",
    "mlx_guarded_llm.display",
    "mlx_guarded_llm.fallback",
    "mlx_guarded_llm.models",
    "mlx_guarded_llm.record",
    "mlx_guarded_llm.server",
    "mlx_guarded_llm.testing.tiny",
    "mlx_guarded_llm.testing.witness",
    "langchain_mlx_guarded",
    "llama_index.embeddings.mlx_guarded",
    "llama_index.llms.mlx_guarded",
]
NEEDS_RAY = "mlx_guarded_ray.application."  # which only `make test-ray` has
NAMED = [
    name
    for page in sorted(PAGES.glob("*.md"))
    for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    if not name.startswith(NEEDS_RAY)
]
PUBLIC = [f"{module}.{name}" for module in MODULES for name in import_module(module).__all__]


def found(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def test_names_are_found() -> None:
    assert len(PUBLIC) > 80 and len(NAMED) > 60


@pytest.mark.parametrize("path", PUBLIC)
def test_a_public_name_is_in_the_reference(path: str) -> None:
    name = path.rpartition(".")[2]
    if path == "mlx_guarded_llm.GuardedLLMError":
        assert found(path) in reference.error_classes()
    else:
        assert any(n.endswith(f".{name}") and found(n) is found(path) for n in NAMED)


def test_no_name_is_there_twice() -> None:
    assert len(NAMED) == len(set(NAMED))


@pytest.mark.parametrize("path", NAMED)
def test_what_is_in_the_reference_has_a_docstring(path: str) -> None:
    value = found(path)
    if not inspect.isclass(value) and not inspect.isfunction(value):
        return  # a constant or an alias of a type: its page shows the value
    assert value.__doc__
    members = vars(value).items() if inspect.isclass(value) else ()
    public = {
        name: inspect.getdoc(getattr(value, name))  # which may be inherited
        for name, member in members
        if not name.startswith("_") and isinstance(member, FunctionType | property | classmethod)
    }
    assert [name for name, words in public.items() if not words] == []


@pytest.mark.parametrize("error", reference.error_classes())
def test_an_error_says_what_to_do(error: type[Exception]) -> None:
    assert "What to do:\n" in (error.__doc__ or "")


def test_every_kind_of_event_is_described() -> None:
    assert tuple(KINDS) == get_args(Kind)


def test_every_setting_is_described() -> None:
    def undescribed(model: type[BaseModel]) -> list[str]:
        names = []
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names += undescribed(kind)
            elif not field.description:
                names.append(f"{model.__name__}.{name}")
        return names

    assert [undescribed(model) for model in (Settings, ModelEntry, Retry, Key)] == [[]] * 4


def test_every_variable_of_the_environment_is_described() -> None:
    source = "".join(path.read_text() for path in (ROOT / "mlx_guarded_llm").rglob("*.py"))
    # WORKER_PATH goes from the program to its engine; PORT is a setting, and PREFIX none.
    names = set(re.findall(r"MLX_GUARDED_[A-Z_]*[A-Z]\b(?!__)", source))
    internal = {"MLX_GUARDED_WORKER_PATH", "MLX_GUARDED_PORT"}
    page = (PAGES / "settings.md").read_text()
    assert {name for name in names - internal if f"`{name}`" not in page} == set()


def test_every_page_has_what_it_names() -> None:
    texts = {page.name: page.read_text() for page in PAGES.glob("*.md")}
    places = [
        name for text in texts.values() for name in re.findall("<!-- generated: (.*) -->", text)
    ]
    assert sorted(places) == sorted(reference.PARTS)


@pytest.mark.parametrize("part", reference.PARTS)
def test_a_part_is_made(part: str) -> None:
    assert len(reference.PARTS[part]().splitlines()) > 20


def test_metrics_have_their_labels() -> None:
    assert reference.labels_of("mlx_guarded_requests") == ("model", "outcome")


def test_flags_are_those_of_serve() -> None:
    flags = {name: reference.flag(name) for name in Settings.model_fields}
    assert flags["models"] == "`--model`"
    assert flags["models_roots"] == "`--models-root`"
    assert flags["key_file"] == "`--key-file`"
    assert flags["drain"] == ""


def test_messages_are_read_from_the_source() -> None:
    raised = reference.raised()
    assert raised["NoChatTemplate"] == {
        "The model has no chat template, so it cannot take messages.": "Pass the prompt as one "
        "string, or use an instruction-tuned model."
    }
