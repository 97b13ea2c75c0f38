"""One model under traffic that never pauses, and requests for another one."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.cases.starvation import ANSWER, APART, DEADLINE, REQUESTS, STREAMS
from benchmarks.clients.scenario import OWN, Contender, Expected, Met, Scenario, listed
from benchmarks.pace import story
from benchmarks.side import Ask, Heard, Setup, run_all


class Starvation(Scenario):
    """See the case of the same name."""

    name = "starvation"
    what = (
        f"{STREAMS} clients ask model A again and again; another asks model B {REQUESTS} times, "
        f"one after the other. Memory for one of the two. The traffic ends when B has waited "
        f"{DEADLINE:.0f} s."
    )
    plain = True
    ratio = "worst first piece, s"

    def __init__(self, tokens: int) -> None:
        self._large = [story(i, tokens) for i in range(STREAMS)]
        self._small = [story(10 + i, ANSWER, model="small") for i in range(REQUESTS)]

    @property
    def asks(self) -> Sequence[Ask]:
        """See `Scenario`."""
        return [*self._large, *self._small]

    def run(self, server: Contender, models: Mapping[str, Path], expected: Expected) -> Met:
        """See `Scenario`."""
        heard: list[tuple[str, Ask, Heard]] = []
        over = threading.Event()
        with server.open(Setup(models=models, fits_one=True)) as running:

            def stream(ask: Ask) -> None:
                while not over.is_set():
                    heard.append(("A", ask, running.ask(ask)))
                    if heard[-1][2].error:
                        return

            def ask_small() -> None:
                for ask in self._small:
                    time.sleep(APART)
                    if over.is_set():
                        break
                    patience = threading.Timer(DEADLINE, over.set)
                    patience.start()
                    heard.append(("B", ask, running.ask(ask)))
                    patience.cancel()
                over.set()

            run_all([*(partial(stream, ask) for ask in self._large), ask_small])
        met = Met({})
        for who, ask, one in heard:
            met.add(who, ask, one, expected.verdict(ask, one))
        b = [client for client in met.clients if client["client"] == "B"]
        a = [client for client in met.clients if client["client"] == "A"]
        waits = [client["first"] for client in b]
        met.row = {
            "B answered by its model": f"{_own(b)} of {REQUESTS}",
            "worst headers, s": _worst([client["headers"] for client in b]),
            "worst first piece, s": _worst(waits),
            "longest answer of A, s": max(client["whole"] for client in a),
            "until the traffic ended": "yes" if any(w and w > DEADLINE for w in waits) else "no",
            "A's answers whole": "all" if _own(a) == len(a) else f"{_own(a)} of {len(a)}",
            "what the others got": listed([c["verdict"] for c in (*b, *a) if c["verdict"] != OWN]),
        }
        return met


def _own(clients: Sequence[Mapping[str, str]]) -> int:
    return sum(client["verdict"] == OWN for client in clients)


def _worst(waits: Sequence[float | None]) -> float | str:
    known = [wait for wait in waits if wait is not None]
    return max(known) if known and len(known) == len(waits) else "none"
