"""Runs a case on every side in turn, and puts their figures beside each other.

    comparison = compare(case, [Raw(), Ours()], models, rounds=5)

All sides are open at once and take turns, in an order that rotates from round to round,
while the processes of all others are stopped. So whatever the machine does besides falls
on all of them alike, and ratios are made of figures of one round.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .ours import Ours
from .raw import Raw
from .side import CannotRun, Heard, Setup, Side

LIMIT = Raw.name
OURS = Ours().name

Say = Callable[[str], None]


class Failed(Exception):
    """An answer that a figure needs has an error."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What one round of a case gave on one side.

    Attributes:
        value: what ratios are made of.
        details: further numbers, by name with their unit.
    """

    value: float
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something to compare.

    Attributes:
        name: on the command line and in tables.
        what: is done and counted, in a sentence or two.
        unit: of the figure's value.
        better: which way.
        setup: how to start each side, from the folders of "large" and "small".
        measure: one round.
        reference: one round on raw mlx-lm, where that is not the same as `measure`.
        aim: what we want to reach.
        aim_ratio: where it is one of the value to raw mlx-lm's; a line in the plot.
        needs_raw: raw mlx-lm takes part, as the limit.
        warm_up: what comes before the first round; None for a round that does not count.
        peers: other servers can take part.
        python_apis: peers that are libraries, one request at a time, can take part.
    """

    name: str
    what: str
    unit: str
    better: Literal["higher", "lower"]
    setup: Callable[[Mapping[str, Path]], Setup]
    measure: Callable[[Side], Figure]
    aim: str
    aim_ratio: float | None = None
    reference: Callable[[Side], Figure] | None = None
    needs_raw: bool = True
    warm_up: Callable[[Side], None] | None = None
    peers: bool = True
    python_apis: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All that one side gave.

    Attributes:
        figures: one for each round; none if there is an error.
        error: why it has no figures.
    """

    side: str
    version: str
    notes: tuple[str, ...]
    figures: tuple[Figure, ...] = ()
    error: str = ""

    @property
    def values(self) -> list[float]:
        return [figure.value for figure in self.figures]

    @property
    def median(self) -> float:
        """Of the values; an outcome with an error has none."""
        return statistics.median(self.values)

    @property
    def details(self) -> dict[str, float]:
        """The middle of each detail that every round has."""
        names = self.figures[0].details if self.figures else ()
        return {
            name: statistics.median(figure.details[name] for figure in self.figures)
            for name in names
            if all(name in figure.details for figure in self.figures)
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A case with the outcome of every side."""

    case: Case
    outcomes: tuple[Outcome, ...]

    def ratios(self, side: str, to: str = LIMIT) -> list[float]:
        """A side's value by another's, of each round; [] where one of them has none."""
        ours, theirs = self._values(side), self._values(to)
        if not ours or not theirs:
            return []
        return [a / b for a, b in zip(ours, theirs, strict=True) if b]

    def ahead(self, side: str) -> list[float]:
        """How many times better than a side we are, in each round; above 1 is ahead."""
        if self.case.better == "higher":
            return self.ratios(OURS, to=side)
        return self.ratios(side, to=OURS)

    @property
    def failed(self) -> bool:
        """We, or the limit we are held against, have no figures."""
        return any(outcome.error for outcome in self.outcomes if outcome.side in (LIMIT, OURS))

    def _values(self, side: str) -> list[float]:
        return next((o.values for o in self.outcomes if o.side == side), [])


def compare(
    case: Case,
    sides: Sequence[Side],
    models: Mapping[str, Path],
    rounds: int,
    *,
    say: Say = print,
) -> Comparison:
    """Run a case on sides that are not open yet. At the end all are closed.

    Args:
        models: folders, by "large" and "small".
        say: told of each figure and error.
    """
    runs = [_Run(case, side, say) for side in sides]
    try:
        for run in runs:
            with _alone(run, runs):
                run.start(models)
        for round_ in range(rounds):
            turn = round_ % len(runs)
            for run in (*runs[turn:], *runs[:turn]):
                with _alone(run, runs):
                    run.measure(round_)
    finally:
        for run in runs:
            run.side.close()
    return Comparison(case=case, outcomes=tuple(run.outcome() for run in runs))


def whole(heard: Sequence[Heard]) -> Sequence[Heard]:
    """The same answers, if all are whole.

    Raises:
        Failed: one has an error, or no token.
    """
    for one in heard:
        if one.error:
            raise Failed(one.error)
        if not one.tokens:
            raise Failed("an answer has no token")
    return heard


class _Run:
    """One side on its way through a case."""

    def __init__(self, case: Case, side: Side, say: Say) -> None:
        self.side = side
        self._case = case
        self._say = say
        self._figures: list[Figure] = []
        self._error = ""
        is_raw = side.name.startswith(LIMIT)  # folded or not
        self._measure = case.reference if is_raw and case.reference else case.measure

    def start(self, models: Mapping[str, Path]) -> None:
        with self._caught():
            self.side.open(self._case.setup(models))
            if self._case.warm_up is not None:
                self._case.warm_up(self.side)
            else:
                self._measure(self.side)

    def measure(self, round_: int) -> None:
        if self._error:
            return
        with self._caught():
            figure = self._measure(self.side)
            self._figures.append(figure)
            self._say(f"  {round_ + 1}  {self.side.name:20} {figure.value:10.4g} {self._case.unit}")

    def outcome(self) -> Outcome:
        return Outcome(
            side=self.side.name,
            version=self.side.version,
            notes=tuple(self.side.notes),
            figures=() if self._error else tuple(self._figures),
            error=self._error,
        )

    @contextlib.contextmanager
    def _caught(self) -> Iterator[None]:
        """What goes wrong on one side ends it there, and the others go on."""
        try:
            yield
        except Exception as error:
            told = isinstance(error, (CannotRun, Failed))
            self._error = str(error) if told else f"{type(error).__name__}: {error}"
            self._say(f"  -  {self.side.name:20} {self._error}")
            self.side.close()


@contextlib.contextmanager
def _alone(run: _Run, runs: Sequence[_Run]) -> Iterator[None]:
    """All other sides are asleep meanwhile."""
    with contextlib.ExitStack() as stack:
        for other in runs:
            if other is not run:
                stack.enter_context(other.side.asleep())
        yield
