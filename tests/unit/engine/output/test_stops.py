"""The rule of stop strings against its one-line statement."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_guarded_llm.engine.output.stops import StopFinder

UNHURRIED = settings(deadline=None)  # machines that build are busy

FEW = st.sampled_from("abc")  # few letters, so that stop strings do appear and overlap
STOPS = st.lists(st.text(FEW, min_size=1, max_size=6), max_size=5).map(tuple)


def before_first_stop(text: str, stops: tuple[str, ...]) -> str:
    """The whole rule, on the whole text."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


@UNHURRIED
@given(st.text(FEW, max_size=40), STOPS, st.randoms(use_true_random=False))
@example("abcd", ("abcd", "bc"), None)
@example("abce", ("abcd", "bc"), None)
@example("aaaab", ("aab",), None)
def test_the_text_ends_before_the_first_stop_string(
    text: str, stops: tuple[str, ...], random: Any
) -> None:
    finder = StopFinder(stops)
    expected = before_first_stop(text, stops)
    out, at = "", 0
    while at < len(text):
        size = random.randint(1, 5) if random else 1
        out += finder.add(text[at : at + size])
        at += size
        assert expected.startswith(out), "text behind a stop string has leaked"
    out += finder.finish()
    assert out == expected
    assert bool(finder.found) == any(stop in text for stop in stops)
    assert text.startswith(expected + finder.found)


def test_no_more_is_held_back_than_needed() -> None:
    finder = StopFinder(("aab",))
    assert [finder.add(letter) for letter in "aaaac"] == ["", "", "a", "a", "aac"]


def test_what_can_no_longer_become_an_earlier_stop_string_is_decided() -> None:
    finder = StopFinder(("abcd", "bc"))
    assert (finder.add("abc"), finder.found) == ("", "")
    assert (finder.add("x"), finder.found) == ("a", "bc")
