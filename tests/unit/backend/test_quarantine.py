from __future__ import annotations

import pickle
from typing import Any, get_args

import pytest

from mlx_guarded_llm.backend.quarantine import Quarantine
from mlx_guarded_llm.engine.observer import Work
from mlx_guarded_llm.errors import GuardedLLMError, ModelError, ModelQuarantined
from mlx_guarded_llm.worker.parent.death import Cause, Death


def death(cause: Cause = "abort", work: Work = "step", **more: Any) -> Death:
    fields: dict[str, Any] = {"text": "it died", "pid": 1, "code": -6, "model": "phi3"}
    return Death(cause=cause, work=work, **(fields | more))


def test_one_that_kills_again_and_again_is_quarantined() -> None:
    quarantine = Quarantine(3)
    assert [quarantine.blame(t, "phi3", death()) for t in (0.0, 20.0, 42.0, 43.0)] == [
        False,
        False,
        True,
        False,
    ]
    assert quarantine.held() == ["phi3"]
    assert quarantine.error("llama") is None, "other models go on"


def test_the_error_says_how_often_and_of_what() -> None:
    quarantine = Quarantine(3)
    for t in (100.0, 120.0):
        quarantine.blame(t, "phi3", death())
        assert quarantine.error("phi3") is None
    stderr = "noise\n" * 1000 + "failed assertion 'Completed handler'\n"
    quarantine.blame(142.0, "phi3", death("segfault", "load", code=-11, stderr=stderr))
    error = quarantine.error("phi3")
    assert error is not None
    assert error.message.startswith(
        "phi3 made the engine die 3 times within 42 s (last: SIGSEGV while loading); "
        'it is quarantined. The end of its stderr: "…'
    )
    assert error.message.endswith("failed assertion 'Completed handler'\".")
    assert len(error.message) < 800
    assert error.hint == "backend.forgive('phi3') lifts it."
    assert (error.model, error.deaths, error.stderr) == ("phi3", 3, stderr)
    assert isinstance(error, ModelError) and (error.retryable, error.fallback) == (False, True)


def test_without_stderr_the_message_has_no_such_part() -> None:
    quarantine = Quarantine(1)
    assert quarantine.blame(0.0, "phi3", death())
    assert str(quarantine.error("phi3")) == (
        "phi3 made the engine die once (last: SIGABRT while generating); it is quarantined. "
        "backend.forgive('phi3') lifts it."
    )


def test_the_error_crosses_process_borders() -> None:
    quarantine = Quarantine(1)
    quarantine.blame(0.0, "phi3", death(stderr="why"))
    error = pickle.loads(pickle.dumps(quarantine.error("phi3")))
    assert isinstance(error, ModelQuarantined) and isinstance(error, GuardedLLMError)
    assert (error.model, error.deaths, error.stderr) == ("phi3", 1, "why")


def test_each_who_asks_gets_an_error_of_his_own() -> None:
    quarantine = Quarantine(1)
    quarantine.blame(0.0, "phi3", death())
    assert quarantine.error("phi3") is not quarantine.error("phi3")


def test_deaths_before_the_window_are_forgotten() -> None:
    quarantine = Quarantine(3, window=600.0)
    for t in (0.0, 599.0, 1200.0, 1250.0, 1900.0, 2600.0):
        assert not quarantine.blame(t, "phi3", death())
    assert quarantine.deaths("phi3") == 1
    assert not quarantine.blame(3100.0, "phi3", death())
    assert quarantine.blame(3200.0, "phi3", death()), "the third since 2600, exactly 600 ago"


def test_time_does_not_lift_it() -> None:
    quarantine = Quarantine(1)
    quarantine.blame(0.0, "phi3", death())
    assert not quarantine.blame(1e6, "phi3", death())
    assert quarantine.error("phi3") is not None


@pytest.mark.parametrize("cause", get_args(Cause))
def test_causes_that_count(cause: Cause) -> None:
    counted = {"abort", "segfault", "condemned", "hung", "exit"}
    assert Quarantine(1).blame(0.0, "phi3", death(cause)) == (cause in counted)


@pytest.mark.parametrize("work", get_args(Work))
def test_work_that_counts(work: Work) -> None:
    quarantine = Quarantine(1)
    fitting = {"load", "unload", "step"}
    assert quarantine.blame(0.0, "phi3", death(work=work)) == (work in {*fitting, "prepare"})
    for _ in range(2):
        quarantine.blame(0.0, "phi3", death("out_of_memory", work))
    assert quarantine.refuses(0.0, "phi3") == (work in fitting)


def test_a_death_without_a_model_is_nobodys() -> None:
    quarantine = Quarantine(1)
    assert not quarantine.blame(0.0, "", death())
    assert quarantine.held() == []


def test_none_is_never() -> None:
    quarantine = Quarantine(None)
    assert not any(quarantine.blame(float(t), "phi3", death()) for t in range(100))
    assert quarantine.error("phi3") is None and quarantine.deaths("phi3") == 100


class TestForgive:
    def test_it_begins_anew(self) -> None:
        quarantine = Quarantine(2)
        quarantine.blame(0.0, "phi3", death())
        quarantine.blame(1.0, "phi3", death())
        assert quarantine.forgive("phi3")
        assert quarantine.error("phi3") is None and quarantine.held() == []
        assert (quarantine.deaths("phi3"), quarantine.cause("phi3")) == (0, "")
        assert not quarantine.blame(2.0, "phi3", death())
        assert quarantine.blame(3.0, "phi3", death())

    def test_one_that_was_not_quarantined_loses_its_past_too(self) -> None:
        quarantine = Quarantine(2)
        quarantine.blame(0.0, "phi3", death())
        assert not quarantine.forgive("phi3")
        assert not quarantine.forgive("nobody")
        assert not quarantine.blame(1.0, "phi3", death())

    def test_it_lifts_the_refusal_for_memory(self) -> None:
        quarantine = Quarantine()
        quarantine.blame(0.0, "phi3", death("out_of_memory"))
        quarantine.blame(0.0, "phi3", death("out_of_memory"))
        quarantine.forgive("phi3")
        assert not quarantine.refuses(0.0, "phi3")


class TestMemory:
    def test_the_second_time_within_the_window_is_refused(self) -> None:
        quarantine = Quarantine(3, window=600.0)
        assert not quarantine.refuses(0.0, "phi3")
        assert not quarantine.blame(0.0, "phi3", death("out_of_memory", "load"))
        assert not quarantine.refuses(0.0, "phi3")
        assert not quarantine.blame(10.0, "phi3", death("out_of_memory"))
        assert quarantine.refuses(10.0, "phi3")
        assert not quarantine.refuses(10.0, "llama")
        assert not quarantine.refuses(601.0, "phi3"), "only one is left in the window"

    def test_it_is_counted_apart(self) -> None:
        quarantine = Quarantine(2)
        quarantine.blame(0.0, "phi3", death("out_of_memory"))
        assert not quarantine.blame(1.0, "phi3", death())
        assert not quarantine.refuses(1.0, "phi3")
        assert (quarantine.deaths("phi3"), quarantine.cause("phi3")) == (
            1,
            "SIGABRT while generating",
        )


def test_the_newest_cause_is_told() -> None:
    quarantine = Quarantine()
    quarantine.blame(0.0, "phi3", death())
    quarantine.blame(1.0, "phi3", death("hung", "load"))
    assert quarantine.cause("phi3") == "no progress while loading"


def test_what_is_prepared_beside_it_may_have_held_it_up() -> None:
    """A hang is then held against those requests, and against the model only if it is theirs."""
    quarantine = Quarantine(1)
    assert not quarantine.blame(0.0, "phi3", death("hung", "load", preparing=("ticket-1",)))
    assert quarantine.blame(1.0, "llama", death("hung", "prepare", preparing=("ticket-1",)))
    assert quarantine.blame(2.0, "phi3", death("hung", "load"))
