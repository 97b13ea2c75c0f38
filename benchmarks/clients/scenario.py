"""What a scenario is made of: servers to start, and answers to be judged."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.peers.http import HTTPServer
from benchmarks.raw import Raw
from benchmarks.side import Ask, Heard, Setup

PATIENCE = 90.0  # seconds without an event after which a client gives up
WORDS = 90  # characters of an error in a table

OWN = "its model"
OTHER = "the other model"

Row = dict[str, float | str]


class Expected:
    """The greedy text of each request alone."""

    def __init__(self, texts: Iterable[tuple[Ask, str]]) -> None:
        self._texts = {_key(ask): text for ask, text in texts}

    @classmethod
    def of(cls, models: Mapping[str, Path], asks: Sequence[Ask]) -> Expected:
        """As raw mlx-lm answers."""
        raw = Raw()
        try:
            raw.open(Setup(models=models, loaded=()))
            return cls([(ask, raw.ask(ask).text) for ask in asks])
        finally:
            raw.close()

    def verdict(self, ask: Ask, heard: Heard) -> str:
        """Whose answer it is, or why there is none."""
        if heard.error:
            return shorten(heard.error)
        own = _key(ask)
        if heard.text == self._texts[own]:
            return OWN
        others = [text for key, text in self._texts.items() if key[1:] == own[1:]]
        return OTHER if heard.text in others else "another text"


@dataclass
class Met:
    """What one round of a scenario gave on one server.

    Attributes:
        row: of the table, by column.
        clients: every answer, for the record.
    """

    row: Row
    clients: list[dict[str, Any]] = field(default_factory=list)

    def add(self, who: str, ask: Ask, heard: Heard, verdict: str) -> None:
        """Keep an answer."""
        self.clients.append(
            {
                "client": who,
                "asked": ask.model,
                "says it is": heard.model,
                "verdict": verdict,
                "headers": None if heard.headers is None else heard.headers - heard.began,
                "first": heard.first if heard.pieces else None,
                "whole": heard.seconds,
                "tokens": heard.tokens,
                "worst gap": heard.worst_gap,
                "text": heard.text,
                "error": heard.error,
            }
        )


@dataclass
class Contender:
    """A server in a scenario, started anew in each round.

    Attributes:
        name: in tables.
        make: a server that is not open yet.
        load_wait: of ours.
        known: what a scenario has found out about it, and need not ask again.
    """

    name: str
    make: Callable[[], HTTPServer]
    load_wait: float = 120.0
    known: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def open(self, setup: Setup) -> Iterator[HTTPServer]:
        """The server; at the end it is closed, and its processes are gone."""
        server = self.make()
        server.patience = PATIENCE
        try:
            server.open(replace(setup, load_wait=self.load_wait))
            yield server
        finally:
            server.close()
            self.notes += [note for note in server.notes if note not in self.notes]


class Scenario(ABC):
    """Traffic, and what is told of it.

    Attributes:
        name: on the command line.
        what: the clients do, in a sentence or two.
        waits: of ours to compare; one row each.
        plain: rapid-mlx, which loads nothing by itself, has a row for a client that does not
            load models either.
        ratio: the column of which each server's ratio to ours is told.
    """

    name: str
    what: str
    waits: Sequence[float] = (120.0,)
    plain = False
    ratio = ""

    @property
    @abstractmethod
    def asks(self) -> Sequence[Ask]:
        """Every request whose text must be known."""

    @abstractmethod
    def run(self, server: Contender, models: Mapping[str, Path], expected: Expected) -> Met:
        """One round.

        Raises:
            CannotRun: the server does not start.
        """


def at_once(server: HTTPServer, asks: Sequence[Ask]) -> list[Heard]:
    """Ask all, then wait for all."""
    begun = [server.begin(ask) for ask in asks]
    return [one.heard() for one in begun]


def shorten(error: str) -> str:
    """The beginning of an error, on one line."""
    line = " ".join(error.removeprefix("Refused: ").split())
    return line if len(line) <= WORDS else line[: WORDS - 1] + "…"


def headers(heard: Heard) -> float | str:
    """Seconds until the headers of an answer came."""
    return "none" if heard.headers is None else heard.headers - heard.began


def first(heard: Heard) -> float | str:
    """Seconds until the first piece of an answer came."""
    return heard.first if heard.pieces else "none"


def listed(texts: Sequence[str]) -> str:
    """Different texts, each with how often it came, if more than once."""
    counts = {text: texts.count(text) for text in texts}
    return "; ".join(f"{text} ({n} times)" if n > 1 else text for text, n in counts.items())


def _key(ask: Ask) -> tuple[str, str, int]:
    return ask.model, str(ask.messages), ask.max_tokens
