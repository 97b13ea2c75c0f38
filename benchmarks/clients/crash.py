"""The process that has the model gets SIGABRT in the middle of streams."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path

from benchmarks.cases.crash import BACK, BREATH
from benchmarks.clients.scenario import (
    OWN,
    Contender,
    Expected,
    Met,
    Scenario,
    listed,
)
from benchmarks.pace import story
from benchmarks.peers.http import HTTPServer
from benchmarks.side import Ask, Setup, heaviest

STREAMS = 8
PIECES = 5  # of each answer before it happens


class Crash(Scenario):
    """SIGABRT, as a failed assertion of Metal sends it."""

    name = "crash"
    what = (
        f"{STREAMS} streams of one model; when each has {PIECES} pieces, the process that has "
        "the model in memory gets SIGABRT."
    )

    def __init__(self, tokens: int) -> None:
        self._asks = [story(i, tokens) for i in range(STREAMS)]

    @property
    def asks(self) -> Sequence[Ask]:
        """See `Scenario`."""
        return self._asks

    def run(self, server: Contender, models: Mapping[str, Path], expected: Expected) -> Met:
        """See `Scenario`."""
        met = Met({})
        with server.open(Setup(models={"large": models["large"]})) as running:
            begun = [running.begin(ask) for ask in self._asks]
            for one in begun:
                one.await_pieces(PIECES)
            heaviest(running.processes()).send_signal(signal.SIGABRT)
            answers = [one.heard() for one in begun]
            health = _health(running)
            back = _back(running, self._asks[0])
        for ask, heard in zip(self._asks, answers, strict=True):
            met.add("A", ask, heard, expected.verdict(ask, heard))
        verdicts = [client["verdict"] for client in met.clients]
        whole = [one for one in answers if not one.error]
        met.row = {
            "whole answers": f"{len(whole)} of {STREAMS}",
            "of the same text": f"{verdicts.count(OWN)} of {STREAMS}",
            "longest pause, s": max((one.worst_gap for one in whole), default="none"),
            "what the others got": listed([v for v in verdicts if v != OWN]),
            "/health then": health,
            "the next answer's first piece, s": back,
        }
        return met


def _health(server: HTTPServer) -> str:
    try:
        return server.health()
    except TimeoutError:
        return "no answer"
    except (OSError, HTTPException):
        return "no connection"


def _back(server: HTTPServer, ask: Ask) -> float | str:
    """Seconds to the first piece of an answer, asked for when those of before are over."""
    began = time.monotonic()
    server.patience = BACK
    while server.is_running():
        heard = server.ask(ask)
        if not heard.error and heard.pieces:
            return heard.pieces[0] - began
        if time.monotonic() > began + BACK:
            return f"none in {BACK:.0f} s"
        time.sleep(BREATH)
    return "none: the server is gone"
