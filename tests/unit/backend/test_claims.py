"""When memory is claimed, and what waits for that; the answers are given by the tests."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from mlx_guarded_llm.backend import claims
from mlx_guarded_llm.backend.claims import AGAIN, ANSWER, LULL, Claims
from mlx_guarded_llm.backend.programs import Answer, Claim, Programs, Tell
from mlx_guarded_llm.holder import Holder
from mlx_guarded_llm.logs import flush as flush_logs

OTHER = Holder("train.py", 7, ("m",), 60)


class Desk(Programs):
    """Takes claims down, and answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Tell]] = []
        self.full = self.released = False

    def claim(self, owner: int, claim: Claim, budget: int, tell: Tell) -> bool:
        if not self.full:
            self.asked.append((claim.bytes, tell))
        return not self.full

    def release(self, owner: int) -> None:
        self.released = True


class Setting:
    """Claims, with a clock, and the amount that is wanted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.bytes, self.models = 100.0, 0, {"m": 1}
        monkeypatch.setattr(claims, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.desk = Desk()
        self.went_on: list[str] = []
        self.changes = 0
        self.claims = Claims(self.desk, lambda call: call(), self._changed)
        self.claims.begin(self._wanted, lambda: self.went_on.append("begin"))

    def _changed(self) -> None:
        self.changes += 1

    def _wanted(self) -> Claim:
        return Claim(device="cpu", bytes=self.bytes, models=dict(self.models))

    def want(self, size: int, name: str) -> None:
        self.bytes = size
        self.claims.after(lambda: self.went_on.append(name))

    def answer(self, granted: int, *others: Holder) -> None:
        self.tell(Answer(granted, others))

    def tell(self, answer: Answer | None) -> None:
        _, tell = self.desk.asked[-1]
        tell(answer)

    def tick(self) -> list[int]:
        """What is claimed now."""
        before = len(self.desk.asked)
        self.claims.tick(self.now)
        return [size for size, _ in self.desk.asked[before:]]

    def pass_time(self) -> list[int]:
        """What is claimed at the next deadline."""
        due = self.claims.deadline()
        assert due is not None and due > self.now
        self.now = due
        return self.tick()


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    setting = Setting(monkeypatch)
    assert setting.went_on == [] and setting.desk.asked[0][0] == 0
    setting.answer(0)
    assert setting.went_on == ["begin"]
    setting.tick()
    return setting


def test_nobody_waits_where_enough_is_claimed(setting: Setting) -> None:
    setting.want(50, "a")
    assert setting.went_on == ["begin"] and setting.desk.asked[-1][0] == 50
    setting.answer(50)
    setting.want(50, "b")
    setting.want(40, "c")
    assert setting.went_on == ["begin", "a", "b", "c"] and len(setting.desk.asked) == 2


def test_they_go_on_in_order(setting: Setting) -> None:
    setting.want(50, "a")
    setting.want(60, "b")
    setting.want(10, "c")
    setting.answer(50)
    assert setting.went_on[1:] == ["a"] and setting.desk.asked[-1][0] == 10
    setting.answer(10)
    assert setting.went_on[1:] == ["a", "b", "c"]


def test_what_others_hold_is_told_once(setting: Setting) -> None:
    setting.want(50, "a")
    setting.answer(40, OTHER)
    assert setting.claims.others == (OTHER,) and setting.changes == 1
    assert setting.tick() == []
    assert setting.pass_time() == [50] and setting.now == 100.0 + AGAIN, "it is short"
    setting.answer(40, OTHER)
    assert setting.changes == 1 and setting.tick() == []
    assert setting.pass_time() == [50]
    setting.answer(50)
    assert setting.changes == 2 and not setting.claims.others
    assert setting.tick() == [] and setting.claims.deadline() is None


def test_who_asks_has_others_looked_at(setting: Setting) -> None:
    setting.claims.look()
    assert len(setting.desk.asked) == 1, "it is fresh"
    setting.now += AGAIN
    setting.claims.look()
    setting.claims.look()
    assert len(setting.desk.asked) == 2
    setting.answer(0, OTHER)
    assert setting.claims.others == (OTHER,)


def test_what_was_refused_is_given_back_at_once(setting: Setting) -> None:
    setting.want(50, "a")
    setting.answer(40, OTHER)
    setting.bytes = 0
    assert setting.tick() == [0]


def test_the_memory_of_a_model_that_left_is_given_back_at_once(setting: Setting) -> None:
    setting.want(50, "a")
    setting.answer(50)
    setting.bytes, setting.models = 0, {}
    assert setting.tick() == [0]


def test_that_of_a_request_a_moment_later(setting: Setting) -> None:
    setting.want(50, "a")
    setting.answer(50)
    setting.bytes = 30
    assert setting.tick() == [] and setting.pass_time() == [30]
    assert setting.now == 100.0 + LULL
    setting.answer(30)
    setting.bytes = 50
    assert setting.tick() == [50], "what is needed already is claimed at once"


def test_what_is_given_back_is_not_there_any_more(setting: Setting) -> None:
    setting.want(50, "a")
    setting.answer(50)
    setting.bytes = 30
    setting.tick()
    setting.pass_time()
    setting.want(50, "b")
    assert setting.went_on[1:] == ["a"]
    setting.answer(30)
    setting.answer(50)
    assert setting.went_on[1:] == ["a", "b"]


def test_an_answer_that_never_comes(setting: Setting, caplog: pytest.LogCaptureFixture) -> None:
    setting.want(50, "a")
    assert setting.tick() == [] and setting.claims.deadline() == 100.0 + ANSWER
    setting.pass_time()
    assert flush_logs(60)
    assert setting.went_on[1:] == ["a"] and "goes on alone" in caplog.text
    setting.want(50, "b")
    assert setting.went_on[1:] == ["a", "b"]
    setting.answer(0, OTHER)
    assert setting.claims.others == (), "it is too late"


@pytest.mark.parametrize("full", [False, True])
def test_where_others_cannot_be_counted(setting: Setting, full: bool) -> None:
    setting.desk.full = full
    setting.want(50, "a")
    if not full:
        setting.tell(None)
    assert setting.went_on[1:] == ["a"] and setting.tick() == []


def test_the_end(setting: Setting) -> None:
    setting.want(50, "a")
    setting.claims.close()
    setting.answer(50, OTHER)
    assert setting.changes == 0 and setting.went_on == ["begin"]
    assert setting.desk.released and setting.tick() == [] and setting.claims.deadline() is None


def test_nobody_else_counts() -> None:
    went_on: list[str] = []
    post: Callable[[Callable[[], None]], None] = lambda call: call()  # noqa: E731
    alone = Claims(None, post, lambda: None)
    alone.begin(lambda: Claim(device="cpu", bytes=9, models={}), lambda: went_on.append("begin"))
    alone.after(lambda: went_on.append("a"))
    alone.tick(0.0)
    alone.close()
    assert went_on == ["begin", "a"] and alone.deadline() is None
