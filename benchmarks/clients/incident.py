"""A long answer of one model, another one asked in the middle.

That is the incident, and the case `newcomer` of `benchmarks.cases` with other numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.clients.scenario import (
    OWN,
    Contender,
    Expected,
    Met,
    Row,
    Scenario,
    first,
    headers,
)
from benchmarks.pace import story
from benchmarks.side import Ask, Setup

ANSWER = 8  # tokens of the second model
LONGER = 5  # times an answer of the other scenarios


class Incident(Scenario):
    """A is asked for a long answer; when a third of it has come, B is asked."""

    name = "incident"
    what = (
        "A long answer of model A, alone in memory; after a third of it, model B is asked. "
        "Both would fit."
    )
    waits: Sequence[float] = (120.0, 5.0, 0.0)
    plain = True

    def __init__(self, tokens: int) -> None:
        self._long = story(1, LONGER * tokens)
        self._short = story(2, ANSWER, model="small")
        self._same_of_large = story(2, ANSWER)

    @property
    def asks(self) -> Sequence[Ask]:
        """See `Scenario`."""
        return [self._long, self._short, self._same_of_large]

    def run(self, server: Contender, models: Mapping[str, Path], expected: Expected) -> Met:
        """See `Scenario`."""
        setup = Setup(models=models, loaded=("large",))
        if "alone" not in server.known:
            with server.open(setup) as running:
                server.known["alone"] = first(running.ask(self._short))
        with server.open(setup) as running:
            long = running.begin(self._long)
            long.await_pieces(self._long.max_tokens // 3)
            b = running.begin(self._short).heard()
            a = long.heard()
        verdict_a, verdict_b = expected.verdict(self._long, a), expected.verdict(self._short, b)
        alone, waited = server.known["alone"], first(b)
        both = isinstance(alone, float) and isinstance(waited, float)
        row: Row = {
            "B is answered by": verdict_b,
            "headers, s": headers(b),
            "first piece, s": waited,
            "of that with A idle": waited / alone if both else "",
            "whole, s": b.seconds,
            "A's answer": "whole" if verdict_a == OWN else verdict_a,
            "its longest pause, s": a.worst_gap,
            "A went on after B was asked, s": a.ended - b.began,
        }
        met = Met(row)
        met.add("A", self._long, a, verdict_a)
        met.add("B", self._short, b, verdict_b)
        return met
