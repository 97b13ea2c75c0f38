"""Two models that both fit, asked in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.clients.scenario import (
    OWN,
    Contender,
    Expected,
    Met,
    Scenario,
    at_once,
    listed,
)
from benchmarks.pace import makespan, story
from benchmarks.side import Ask, Setup

COUNT = 6


class TwoModels(Scenario):
    """See the case of the same name."""

    name = "two-models"
    what = f"{COUNT} requests, ABABAB, all at once and then one after the other. Both fit."
    ratio = "all at once, s"

    def __init__(self, tokens: int) -> None:
        self._asks = [story(i, tokens, model=("large", "small")[i % 2]) for i in range(COUNT)]

    @property
    def asks(self) -> Sequence[Ask]:
        """See `Scenario`."""
        return self._asks

    def run(self, server: Contender, models: Mapping[str, Path], expected: Expected) -> Met:
        """See `Scenario`."""
        with server.open(Setup(models=models, loaded=("large", "small"))) as running:
            at_once(running, self._asks)  # what a first time takes does not count
            together = at_once(running, self._asks)
            in_turn = [running.ask(ask) for ask in self._asks]
        met = Met({})
        for ask, heard in zip(self._asks * 2, [*together, *in_turn], strict=True):
            met.add("AB"[ask.model == "small"], ask, heard, expected.verdict(ask, heard))
        verdicts = [client["verdict"] for client in met.clients]
        met.row = {
            "answers of the model asked": f"{verdicts.count(OWN)} of {len(verdicts)}",
            "all at once, s": makespan(together),
            "worst first piece, s": max(one.first for one in together),
            "one after the other, s": makespan(in_turn),
            "what the others got": listed([verdict for verdict in verdicts if verdict != OWN]),
        }
        return met
