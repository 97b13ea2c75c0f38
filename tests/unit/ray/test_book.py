"""What a router knows between two reports."""

from __future__ import annotations

from dataclasses import replace

from mlx_guarded_ray.book import Book, Report
from mlx_guarded_ray.routing import ModelAt, ReplicaView, Wanted

GB = 10**9


def report(count: int, requests: frozenset[str] = frozenset(), **models: ModelAt) -> Report:
    return Report("r", count, ReplicaView("r", 3 * GB, models), requests)


def test_a_report_travels_as_plain_values() -> None:
    sent = report(3, frozenset({"one"}), a=ModelAt(GB, active=1, idle=2.5))
    assert Report.from_dict(sent.as_dict()) == sent


def test_an_older_report_says_nothing() -> None:
    book = Book()
    book.report(report(2, a=ModelAt(GB)))
    book.report(report(1))
    assert "a" in book.view("r").models


def test_what_was_sent_counts_until_a_report_has_it() -> None:
    book, wanted = Book(), Wanted("a", GB, request_id="one")
    book.report(report(1))
    book.sent("call", wanted, "r")
    assert book.view("r").models["a"] == ModelAt(GB, resident=False, waiting=1)
    book.report(report(2, frozenset({"one"}), a=ModelAt(GB, active=1)))
    assert book.view("r").models["a"] == ModelAt(GB, active=1)


def test_what_is_chosen_counts_at_once_and_only_until_it_is_sent_or_withdrawn() -> None:
    book, wanted = Book(), Wanted("a", GB, request_id="one")
    book.chosen("call", wanted, "r")
    assert not book.view("r").idle
    book.sent("call", wanted, "other")
    assert book.view("r").idle
    assert not book.view("other").idle
    book.chosen("next", wanted, "r")
    book.withdraw("next")
    assert book.view("r").idle


def test_what_was_chosen_and_never_sent_is_forgotten_with_the_next_report() -> None:
    book = Book()
    book.chosen("call", Wanted("a", GB, request_id="one"), "r")
    book.report(report(1))
    assert book.view("r").idle


def test_an_answered_request_leaves_its_model_behind() -> None:
    book = Book()
    book.report(report(1))
    book.sent("call", Wanted("a", GB), "r")
    book.ended("call", "r")
    view = book.view("r")
    assert view.models["a"] == ModelAt(GB)
    assert view.idle
    book.report(report(2))
    assert not book.view("r").models


def test_an_answer_that_a_report_still_has_as_running_is_over() -> None:
    book = Book()
    book.report(report(1))
    book.sent("call", Wanted("a", GB, request_id="one"), "r")
    book.report(report(2, frozenset({"one"}), a=ModelAt(GB, active=1)))
    book.answered("one", "r")
    assert book.view("r").idle


def test_an_answer_stays_over_though_a_report_was_made_before_its_request_was() -> None:
    book = Book()
    book.sent("call", Wanted("a", GB, request_id="one"), "r")
    book.answered("one", "r")
    book.report(report(1, frozenset({"one"}), a=ModelAt(GB, active=1)))
    assert book.view("r").idle
    book.report(report(2, a=ModelAt(GB)))
    book.report(report(3, frozenset({"one"}), a=ModelAt(GB, active=1)))
    assert not book.view("r").idle  # it was asked for again


def test_a_model_that_has_just_answered_makes_room() -> None:
    book = Book()
    book.report(Report("r", 1, ReplicaView("r", 3 * GB, beside=GB)))
    book.sent("one", Wanted("a", GB), "r")
    book.sent("two", Wanted("b", GB), "r")
    book.ended("one", "r")
    book.sent("three", Wanted("c", GB), "r")
    assert set(book.view("r").models) == {"b", "c"}


def test_what_has_no_room_beside_it_is_thought_evicted_longest_idle_first() -> None:
    book = Book()
    old, new = ModelAt(GB, idle=50), ModelAt(GB, idle=5)
    book.report(report(1, old=old, new=new, pin=replace(old, pinned=True)))
    book.sent("call", Wanted("a", GB), "r")
    assert set(book.view("r").models) == {"a", "new", "pin"}


def test_replicas_that_went_are_forgotten() -> None:
    book = Book()
    book.report(report(1, a=ModelAt(GB)))
    assert book.size("a") == GB
    book.keep([])
    assert book.size("a") is None
    assert book.view("r") == ReplicaView("r", 0)
