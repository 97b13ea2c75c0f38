"""A model that is not in memory is asked while a long answer of another one runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from ..harness import Case, Failed, Figure, whole
from ..ours import Ours
from ..pace import PROBE, Numbers, story, tokens_lasting
from ..raw import Raw
from ..side import Setup, Side

WAITS = (0.0, 5.0, 120.0)  # `load_wait`; peers have nothing of the kind
LONG = 12.0  # seconds that the long answer takes alone
AFTER = 2.0  # seconds at which the newcomer is asked
ANSWER = 8  # tokens of the newcomer


def case(args: argparse.Namespace) -> list[Case]:
    return [_Newcomer(wait).case() for wait in WAITS]


class _Newcomer:
    """The long answer has the same number of tokens on every side."""

    def __init__(self, load_wait: float) -> None:
        self._load_wait = load_wait
        self._numbers = Numbers()
        self._tokens = 0
        self._start: Setup

    def case(self) -> Case:
        wait = self._load_wait
        at_once = wait == 0
        return Case(
            name=f"newcomer-{wait:.0f}",
            what="A small model, not in memory, is asked in the middle of a long answer of the "
            f"large one, load_wait={wait:g}: seconds to its first piece. Raw loads and answers "
            "with nothing else running.",
            unit="s",
            better="lower",
            setup=self._setup,
            measure=self._measure,
            reference=lambda raw: Figure(value=self._alone(raw)),
            warm_up=self._warm_up,
            peers=at_once,
            aim="at most 1.2 of raw; ahead of each peer" if at_once else f"{wait:g} s more at most",
            aim_ratio=1.2 if at_once else None,
        )

    def _setup(self, models: Mapping[str, Path]) -> Setup:
        self._start = Setup(models=models, load_wait=self._load_wait)
        return self._start

    def _warm_up(self, side: Side) -> None:
        tokens = tokens_lasting(side, self._numbers, LONG)
        self._tokens = self._tokens or tokens
        if isinstance(side, Raw):
            self._alone(side)
        elif isinstance(side, Ours):
            self._measure(side)  # peers start anew in each round

    def _measure(self, side: Side) -> Figure:
        details: dict[str, float] = {}
        if isinstance(side, Ours):
            details["alone, s"] = self._alone(side)
        self._leave_large(side)
        long, new = whole(
            side.together(
                [
                    story(self._numbers.take(side), self._tokens),
                    story(self._numbers.take(side), ANSWER, model="small", after=AFTER),
                ]
            )
        )
        if new.began >= long.ended:
            raise Failed(f"the long answer ended after {long.seconds:.1f} s, {long.tokens} tokens")
        if isinstance(side, Ours):
            details["of alone"] = new.first / details["alone, s"]
            details["its load, s"] = side.guards[new].loading
        details |= {"long answer, s": long.seconds, "its worst gap, s": long.worst_gap}
        return Figure(value=new.first, details=details)

    def _alone(self, side: Side) -> float:
        """Seconds of load and first piece while nothing else runs."""
        self._leave_large(side)
        ask = story(self._numbers.take(side), ANSWER, model="small")
        return whole([side.ask(ask)])[0].first

    def _leave_large(self, side: Side) -> None:
        """Have only the large model in memory."""
        if isinstance(side, (Ours, Raw)):
            side.unload("small")
            return
        side.close()  # most peers cannot be told to drop one model
        side.open(self._start)
        whole([side.ask(story(self._numbers.take(side), PROBE))])
