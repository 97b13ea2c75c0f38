"""The client of the HTTP peers, tried on a small server of our own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import http
from benchmarks.peers.http import HTTPServer
from benchmarks.side import Ask, CannotRun, Heard, Setup, is_running

SERVER = Path(__file__).with_name("_server.py")
SETUP = Setup(models={"large": Path("large")}, loaded=())


class Stand(HTTPServer):
    name = "stand-in"
    sampling = {"top_p": "top_p", "repetition_penalty": "rep_pen"}  # noqa: RUF012

    def command(self, setup: Setup, port: int, scratch: Path) -> Sequence[str | Path]:
        return [sys.executable, SERVER, str(port)]


class Ends(Stand):
    def command(self, setup: Setup, port: int, scratch: Path) -> Sequence[str | Path]:
        return [sys.executable, "-c", "import sys; sys.exit('no such model')"]


@pytest.fixture
def side() -> Iterator[Stand]:
    stand = Stand()
    stand.open(SETUP)
    yield stand
    stand.close()


def ask(side: HTTPServer, behaviour: str, **options: Any) -> Heard:
    messages = ({"role": "user", "content": behaviour},)
    return side.ask(Ask(messages=messages, max_tokens=9, options=options))


def test_an_answer_is_its_pieces_of_text_and_thinking_in_order(side: Stand) -> None:
    heard = ask(side, "whole")
    assert (heard.text, heard.error) == ("Well. Paris it is.", "")
    assert len(heard.pieces) == 4  # what has no text is no piece
    assert [heard.began, *heard.pieces, heard.ended] == sorted(
        [heard.began, *heard.pieces, heard.ended]
    )


def test_tokens_are_those_of_the_usage(side: Stand) -> None:
    assert ask(side, "whole").tokens == 7
    assert side.notes == []


def test_without_usage_pieces_are_counted_and_a_note_says_so(side: Stand) -> None:
    assert ask(side, "without usage").tokens == 2
    ask(side, "without usage")
    assert [note for note in side.notes if "usage" in note] == side.notes
    assert len(side.notes) == 1


def test_a_request_is_greedy_and_streamed_unless_told_otherwise(side: Stand) -> None:
    body = json.loads(ask(side, "echo").text)
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("large", 0.0, 9)
    assert body["stream"] and body["stream_options"] == {"include_usage": True}


def test_options_go_by_the_servers_names_and_unknown_ones_are_noted(side: Stand) -> None:
    body = json.loads(ask(side, "echo", top_p=0.5, repetition_penalty=1.1, seed=4).text)
    assert (body["top_p"], body["rep_pen"]) == (0.5, 1.1)
    assert "seed" not in body
    assert any("seed" in note for note in side.notes)


def test_many_are_answered_at_once(side: Stand) -> None:
    question = ({"role": "user", "content": "whole"},)
    heard = side.together([Ask(messages=question, max_tokens=9) for _ in range(32)])
    assert [h.text for h in heard if not h.error] == ["Well. Paris it is."] * 32


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("refuse", "HTTP 503"),
        ("error", "out of memory"),
        ("break off", "ended before the answer"),
        ("no json", "JSONDecodeError"),
    ],
)
def test_what_goes_wrong_is_in_the_answer(side: Stand, behaviour: str, reason: str) -> None:
    assert reason in ask(side, behaviour).error
    assert ask(side, "whole").error == ""  # the next request fares well


def test_an_answer_cut_short_keeps_what_came(side: Stand) -> None:
    assert ask(side, "break off").text == "So"


@pytest.mark.parametrize("behaviour", ["silence", "comments"])
def test_an_answer_that_goes_on_no_more_is_given_up(
    side: Stand, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stand, "patience", 0.2)
    assert "TimeoutError" in ask(side, behaviour).error


def test_death_in_the_middle_ends_the_answer_with_an_error(side: Stand) -> None:
    heard = ask(side, "die")
    assert heard.error and heard.text == "So"
    assert ask(side, "whole").error


def test_no_process_is_left_after_close() -> None:
    side = Stand()
    side.open(SETUP)
    family = side.processes()
    assert len(family) == 2  # the server has a child
    side.close()
    assert not [process for process in family if is_running(process)]
    assert side.processes() == []
    side.close()  # twice does no harm


def test_a_sleeping_server_can_be_closed() -> None:
    side = Stand()
    side.open(SETUP)
    family = side.processes()
    with side.asleep():
        side.close()
    assert not [process for process in family if is_running(process)]


def test_a_server_that_ends_at_once_is_told_with_its_last_words() -> None:
    with pytest.raises(CannotRun, match="no such model"):
        Ends().open(SETUP)


def test_a_server_that_is_not_ready_in_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "START_SECONDS", 0.0)
    side = Stand()
    with pytest.raises(CannotRun, match="not ready"):
        side.open(SETUP)
    assert side.processes() == []


def test_a_command_that_is_not_there_is_told() -> None:
    class Missing(Stand):
        def command(self, setup: Setup, port: int, scratch: Path) -> Sequence[str | Path]:
            return [scratch / "nowhere"]

    with pytest.raises(CannotRun, match="nowhere"):
        Missing().open(SETUP)


def test_a_model_that_does_not_load_is_told() -> None:
    class Refuses(Stand):
        def served(self, model: str) -> str:
            return model

        def load(self, model: str) -> None:
            self._opened()
            heard = ask(self, "refuse")
            raise CannotRun(heard.error)

    with pytest.raises(CannotRun, match="no room"):
        Refuses().open(Setup(models={"large": Path("large")}))
