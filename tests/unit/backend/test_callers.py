"""What a backend's callers hear of a stage, its end included."""

from __future__ import annotations

from mlx_guarded_llm import Progress
from mlx_guarded_llm.backend.callers import Callers
from mlx_guarded_llm.errors import EngineDied


def heard_by() -> tuple[Callers, list[Progress]]:
    heard: list[Progress] = []
    return Callers(heard.append, 10), heard


def test_progress_names_its_model() -> None:
    callers, heard = heard_by()
    callers.moved("phi3", None, Progress("load", 1, 2))
    assert heard == [Progress("load", 1, 2, model="phi3")]


def test_a_stage_is_over_when_all_is_done() -> None:
    callers, heard = heard_by()
    callers.moved("phi3", None, Progress("load", 2, 2))
    callers.loaded()
    assert [p.over for p in heard] == [True]


def test_a_stage_is_over_when_the_next_begins() -> None:
    callers, heard = heard_by()
    callers.moved("phi3", None, Progress("import", 7, None))
    callers.moved("phi3", None, Progress("verify", 0, 9))
    assert [(p.stage, p.done, p.over) for p in heard] == [
        ("import", 7, False),
        ("import", 7, True),
        ("verify", 0, False),
    ]


def test_a_load_that_fails_is_over_and_a_download_beside_it_is_not() -> None:
    callers, heard = heard_by()
    callers.moved("phi3", None, Progress("load", 1, 2))
    callers.moved("qwen3", None, Progress("download", 1, 2))
    callers.loaded()
    assert [(p.model, p.over) for p in heard[2:]] == [("phi3", True)]
    callers.stopped("qwen3")
    assert [(p.model, p.over) for p in heard[3:]] == [("qwen3", True)]


def test_when_everything_ends_every_stage_does() -> None:
    callers, heard = heard_by()
    callers.moved("phi3", None, Progress("load", 1, 2))
    callers.end_all(EngineDied("gone."))
    callers.end_all(EngineDied("gone."))
    assert [p.over for p in heard] == [False, True]


def test_progress_of_a_request_nobody_waits_for_is_dropped() -> None:
    callers, heard = heard_by()
    callers.moved("phi3", "r1", Progress("prefill", 1, 2))
    assert heard == []
