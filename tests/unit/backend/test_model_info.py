from __future__ import annotations

from mlx_guarded_llm.backend.model_info import model_infos
from mlx_guarded_llm.backend.quarantine import Quarantine
from mlx_guarded_llm.guard import ModelState
from mlx_guarded_llm.worker.parent.death import Death

ABORT = Death(cause="abort", text="it died", pid=1, code=-6, work="step", model="phi3")


def stage(model: ModelState) -> str:
    return "resident" if model.resident else "loading"


def test_models_in_quarantine_are_listed_though_nobody_wants_them() -> None:
    quarantine = Quarantine(1)
    quarantine.blame(0.0, "phi3", ABORT)
    states = [ModelState("llama", resident=True, last_used=2.0)]
    llama, phi = model_infos(states, stage, {}, None, 5.0, quarantine)
    assert (llama.name, llama.state, llama.crashes, llama.cause) == ("llama", "resident", 0, "")
    assert (llama.idle_seconds, phi.idle_seconds) == (3.0, None)
    assert (phi.name, phi.state, phi.crashes) == ("phi3", "quarantined", 1)
    assert phi.cause == "SIGABRT while generating"


def test_each_is_listed_once() -> None:
    quarantine = Quarantine(1)
    quarantine.blame(0.0, "phi3", ABORT)
    (info,) = model_infos([ModelState("phi3", load="load-1")], stage, {}, None, 5.0, quarantine)
    assert info.state == "quarantined"


def test_one_that_crashed_less_often_keeps_its_state() -> None:
    quarantine = Quarantine(3)
    quarantine.blame(0.0, "phi3", ABORT)
    (info,) = model_infos([ModelState("phi3", resident=True)], stage, {}, None, 5.0, quarantine)
    assert (info.state, info.crashes, info.cause) == ("resident", 1, "SIGABRT while generating")
    assert model_infos([], stage, {}, None, 5.0, quarantine) == []
