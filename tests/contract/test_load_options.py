"""What a model is loaded with reaches the backend through every face, and only its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.embeddings.mlx_guarded import MLXGuardedEmbedding

from langchain_mlx_guarded import ChatMLXGuarded, MLXGuardedEmbeddings
from mlx_guarded_llm import Backend
from tests.conftest import MakeModel

from ._each import each_library
from ._faces import Face


@each_library
async def test_they_are_of_the_model_alone(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    model, other = scripted("Paris."), scripted("Lyon.")
    llm = face.make(
        backend,
        model,
        context_window=200,
        fallbacks=[other],
        accept=lambda result: "Lyon" in result.text,
        on_fallback="mark",
    )
    face.inspect(llm)
    answer = await face.ask(llm, "Where?")
    assert answer.guard.requested_model == f"{model}[context_window=200]"
    assert answer.guard.served_model == other
    sizes = {info.name: info.context_window for info in backend.models()}
    assert sizes[f"{model}[context_window=200]"] == 200 != sizes[other]


@each_library
async def test_what_was_loaded_is_what_answers(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    model = scripted("Paris.")
    info = backend.load(model, context_window=200)
    for name in (model, info.name, f"{model}[context_window=200]", Path(model)):
        answer = await face.ask(face.make(backend, name), "Where?")  # type: ignore[arg-type]
        assert answer.model == model
    assert [info.context_window for info in backend.models()] == [200]


@each_library
async def test_an_option_beside_the_name_wins(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    model = scripted("Paris.")
    llm = face.make(backend, f"{model}[context_window=300]", context_window=200)
    answer = await face.ask(llm, "Where?")
    full = f"{model}[context_window=200]"
    assert (answer.guard.requested_model, answer.guard.served_model) == (full, full)


@each_library
async def test_paths_are_names(face: Face, backend: Backend, scripted: MakeModel) -> None:
    model, other = scripted("Paris."), scripted("Lyon.")
    llm = face.make(
        backend,
        Path(model),  # type: ignore[arg-type]
        fallbacks=[Path(other)],
        accept=lambda result: "Lyon" in result.text,
        on_fallback="mark",
    )
    face.inspect(llm)
    guard = (await face.ask(llm, "Where?")).guard
    assert (guard.requested_model, guard.served_model) == (model, other)


def test_a_call_of_langchain_may_have_its_own(backend: Backend, scripted: MakeModel) -> None:
    model, other = scripted("Paris."), scripted("Lyon.")
    chat = ChatMLXGuarded(model=model, backend=backend, context_window=200)
    for options, served in (
        ({}, f"{model}[context_window=200]"),
        ({"context_window": 300}, f"{model}[context_window=300]"),
        ({"model": other}, other),
        ({"model": Path(other)}, other),
        ({"model": other, "context_window": 300}, f"{other}[context_window=300]"),
    ):
        guard = chat.invoke("Where?", **options).response_metadata["guard"]
        assert guard["served_model"] == served


@pytest.mark.parametrize(
    ("cls", "name"), [(MLXGuardedEmbeddings, "model"), (MLXGuardedEmbedding, "model_name")]
)
def test_embeddings(cls: Any, name: str, backend: Backend, embedder: MakeModel) -> None:
    embedding = cls(**{name: Path(embedder())}, backend=backend, context_window=16)
    one = getattr(embedding, "embed_query", None) or embedding.get_query_embedding
    assert len(one("a cat")) > 0
    assert [info.context_window for info in backend.models()] == [16]
