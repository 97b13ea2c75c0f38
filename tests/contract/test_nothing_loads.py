"""A framework may look at a model as often as it likes; only a call loads it."""

from __future__ import annotations

from mlx_guarded_llm import Backend
from tests.conftest import MakeModel
from tests.engine._backend import events

from ._each import each_library
from ._faces import Face


@each_library
async def test_making_and_inspecting_a_model_loads_nothing(
    face: Face, backend: Backend, scripted: MakeModel
) -> None:
    model = scripted("The capital is Paris.")
    llm = face.make(backend, model, fallbacks=[scripted("Lyon.")], max_tokens=9)
    face.inspect(llm)
    assert backend.models() == []
    assert events(backend, "load.") == []
    assert (await face.ask(llm, "Where?")).model == model
