"""What listeners hear of a stage, its end included."""

from __future__ import annotations

from mlx_guarded_llm import Progress
from mlx_guarded_llm.backend.listeners import Listeners


def heard_by() -> tuple[Listeners, list[Progress]]:
    heard: list[Progress] = []
    return Listeners(heard.append, lambda listener, news: listener(news)), heard


def test_progress_names_its_model() -> None:
    listeners, heard = heard_by()
    listeners.moved("phi3", Progress("load", 1, 2))
    assert heard == [Progress("load", 1, 2, model="phi3")]


def test_a_stage_is_over_when_all_is_done() -> None:
    listeners, heard = heard_by()
    listeners.moved("phi3", Progress("load", 2, 2))
    listeners.load_stopped()
    assert [p.over for p in heard] == [True]


def test_a_stage_is_over_when_the_next_begins() -> None:
    listeners, heard = heard_by()
    listeners.moved("phi3", Progress("import", 7, None))
    listeners.moved("phi3", Progress("verify", 0, 9))
    assert [(p.stage, p.done, p.over) for p in heard] == [
        ("import", 7, False),
        ("import", 7, True),
        ("verify", 0, False),
    ]


def test_a_load_that_fails_is_over_and_a_download_beside_it_is_not() -> None:
    listeners, heard = heard_by()
    listeners.moved("phi3", Progress("load", 1, 2))
    listeners.moved("qwen3", Progress("download", 1, 2))
    listeners.load_stopped()
    assert [(p.model, p.over) for p in heard[2:]] == [("phi3", True)]
    listeners.stopped("qwen3")
    assert [(p.model, p.over) for p in heard[3:]] == [("qwen3", True)]


def test_when_everything_ends_every_stage_does() -> None:
    listeners, heard = heard_by()
    listeners.moved("phi3", Progress("load", 1, 2))
    listeners.all_stopped()
    listeners.all_stopped()
    assert [p.over for p in heard] == [False, True]


def test_whoever_a_stage_is_for_hears_of_it_too() -> None:
    listeners, heard = heard_by()
    own: list[Progress] = []
    listeners.moved("phi3", Progress("prefill", 1, 2), [own.append, None], request_id="r1")
    listeners.stopped("phi3", "r1")
    assert own == heard and [(p.request_id, p.over) for p in own] == [("r1", False), ("r1", True)]
