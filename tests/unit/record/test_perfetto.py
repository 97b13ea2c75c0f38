"""The trace: JSON that Perfetto and Chrome can draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_guarded_llm.errors import InvalidRequest
from mlx_guarded_llm.record import (
    Event,
    read_perfetto,
    timeline,
    to_perfetto,
    write_perfetto,
)

from .incidents import BIG, PHI, at, crash, crowd, incident


def _of(trace: dict[str, Any], ph: str) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == ph]


def _slices(trace: dict[str, Any]) -> list[tuple[str, int, int, int]]:
    return [(e["name"], e["tid"], e["ts"], e["dur"]) for e in _of(trace, "X")]


def check(trace: dict[str, Any]) -> None:
    """Raise unless the trace is sound: known phases, sorted, nested, arrows in pairs."""
    json.loads(json.dumps(trace, allow_nan=False))
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} <= {"M", "X", "i", "s", "f"}
    timed = [event for event in events if event["ph"] != "M"]
    assert [event["ts"] for event in timed] == sorted(event["ts"] for event in timed)
    assert all(event["ts"] >= 0 for event in timed)
    named = {event["tid"] for event in _of(trace, "M") if event["name"] == "thread_name"}
    assert {event["tid"] for event in timed} <= named
    stacks: dict[int, list[int]] = {}
    for event in _of(trace, "X"):
        assert event["dur"] >= 0
        stack, end = stacks.setdefault(event["tid"], []), event["ts"] + event["dur"]
        while stack and stack[-1] <= event["ts"]:
            stack.pop()
        assert not stack or end <= stack[-1], "a slice reaches out of the one around it"
        stack.append(end)
    tails = {event["id"]: event["ts"] for event in _of(trace, "s")}
    heads = {event["id"]: event["ts"] for event in _of(trace, "f")}
    assert tails.keys() == heads.keys()
    assert all(tails[number] <= heads[number] for number in tails)


def test_the_incident() -> None:
    trace = to_perfetto(incident())
    check(trace)
    big, phi = 2, 3
    assert sorted(_slices(trace), key=lambda s: s[1:3]) == [
        ("r1", big, 0, 200_000_000),
        ("prefill", big, 0, 4_000_000),
        ("decode", big, 4_000_000, 172_000_000),
        ("paused", big, 176_000_000, 2_500_000),
        ("decode", big, 178_500_000, 21_500_000),
        ("deferred", phi, 56_000_000, 120_000_000),
        ("loading", phi, 176_000_000, 2_500_000),
        ("r2", phi, 178_500_000, 10_500_000),
        ("prefill", phi, 178_500_000, 500_000),
        ("decode", phi, 179_000_000, 10_000_000),
    ]


def test_tracks_are_named_by_model() -> None:
    trace = to_perfetto(incident())
    names = {(e["name"], e["tid"]): e["args"] for e in _of(trace, "M")}
    assert names["process_name", 0] == {"name": "mlx-guarded-llm"}
    assert names["thread_name", 2] == {"name": BIG}
    assert names["thread_name", 3] == {"name": PHI}


def test_an_arrow_goes_from_the_holder_to_what_it_held_up() -> None:
    trace = to_perfetto(incident())
    (tail,), (head,) = _of(trace, "s"), _of(trace, "f")
    assert (tail["tid"], tail["ts"]) == (2, 56_000_000)
    assert (head["tid"], head["ts"]) == (3, 56_000_000)


def test_slices_carry_the_numbers() -> None:
    trace = to_perfetto(incident())
    (r2,) = [event for event in _of(trace, "X") if event["name"] == "r2"]
    assert r2["args"] == {
        "request_id": "r2",
        "outcome": "finished",
        "cause": "stop",
        "prompt_tokens": 812,
        "cached_tokens": 12,
        "completion_tokens": 201,
    }


def test_requests_at_once_have_tracks_of_their_own() -> None:
    trace = to_perfetto(crowd())
    check(trace)
    requests = ("a", "b", "c (unfinished)", "d")
    outer = [event for event in _of(trace, "X") if event["name"] in requests]
    assert len(outer) == 4
    assert len({event["tid"] for event in outer}) == len(outer)
    names = [event["args"].get("name") for event in _of(trace, "M")]
    assert [PHI, f"{PHI} #2", f"{PHI} #3"] == [n for n in names if n and n.startswith(PHI)][:3]


def test_what_is_unfinished_is_closed_and_marked() -> None:
    trace = to_perfetto(crowd())
    (open_end,) = [event for event in _of(trace, "X") if event["name"] == "c (unfinished)"]
    assert open_end["ts"] + open_end["dur"] == 7_000_000
    assert open_end["args"]["unfinished"] is True


def test_failures_cancels_and_the_engine_are_instants() -> None:
    instants = [(event["name"], event["s"]) for event in _of(to_perfetto(crowd()), "i")]
    assert instants == [("a failed", "t"), ("b cancelled", "t"), ("d cancelled", "t")]
    trace = to_perfetto(crash())
    check(trace)
    assert ("engine.failed", "p") in [(e["name"], e["s"]) for e in _of(trace, "i")]


def test_an_unknown_holder_has_no_arrow() -> None:
    trace = to_perfetto([at(0, "load.deferred", PHI, job="j1", behind=(("gone", BIG),))])
    check(trace)
    assert _of(trace, "s") == []


def test_no_events() -> None:
    check(to_perfetto([]))


def test_writes_a_file(tmp_path: Path) -> None:
    path = write_perfetto(incident(), tmp_path / "trace.json")
    assert json.loads(path.read_text()) == to_perfetto(incident())


@pytest.mark.parametrize("events", [incident(), crash(), crowd(), []])
def test_what_is_read_is_what_was_written(events: list[Event], tmp_path: Path) -> None:
    found = read_perfetto(write_perfetto(events, tmp_path / "trace.json"))
    assert timeline(found) == timeline(events)
    assert [event[:-1] for event in found] == [event[:-1] for event in events]  # but details


def test_details_that_json_does_not_know_become_text(tmp_path: Path) -> None:
    event = at(0, "load.finished", PHI, path=Path("/m"), seconds=float("nan"), evict=(BIG,))
    (found,) = read_perfetto(write_perfetto([event], tmp_path / "trace.json"))
    assert found.details == {"path": "/m", "seconds": "nan", "evict": [BIG]}


def rewritten(path: Path, **fields: Any) -> Path:
    """A trace whose first event has other fields."""
    trace = json.loads(write_perfetto(incident(), path).read_text())
    (events,) = (value for value in trace["otherData"].values() if isinstance(value, list))
    events[0].update(fields)
    path.write_text(json.dumps(trace))
    return path


@pytest.mark.parametrize(
    "fields", [{"kind": "load.exploded"}, {"time": "noon"}, {"waiting_for": [1]}, {"colour": "red"}]
)
def test_an_event_that_nobody_wrote_is_refused(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="is no trace of mlx-guarded-llm"):
        read_perfetto(rewritten(tmp_path / "trace.json", **fields))


def test_a_trace_without_events_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    trace = to_perfetto(incident())
    del trace["otherData"]
    path.write_text(json.dumps(trace))
    with pytest.raises(InvalidRequest, match="without the events") as raised:
        read_perfetto(path)
    assert "write it again" in raised.value.hint
