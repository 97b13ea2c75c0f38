"""A load that was deferred, its files read meanwhile, against one from a cold file cache."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from ..harness import Case, Failed, Figure, whole
from ..ours import Ours
from ..pace import Numbers, story, tokens_lasting
from ..pagecache import cached, drop
from ..side import Setup, Side

LONGER = 3.0  # times the seconds of a cold load: how long the deferral is


def case(args: argparse.Namespace) -> Case:
    return _Deferred().case()


class _Deferred:
    """The large model is loaded; the small one generates meanwhile."""

    def __init__(self) -> None:
        self._numbers = Numbers()
        self._models: Mapping[str, Path] = {}
        self._files: list[Path] = []
        self._tokens = 0

    def case(self) -> Case:
        return Case(
            name="deferred",
            what="The load of the large model behind an answer of the small one, by the same "
            "load with nothing else running; before both, its files leave the file cache.",
            unit="of a cold load",
            better="lower",
            setup=self._setup,
            measure=self._measure,
            warm_up=self._warm_up,
            needs_raw=False,
            peers=False,
            aim="at most 0.5",
        )

    def _setup(self, models: Mapping[str, Path]) -> Setup:
        self._models = models
        self._files = [file.resolve() for file in models["large"].glob("*.safetensors")]
        return Setup(models=models, loaded=("small",))

    def _warm_up(self, side: Side) -> None:
        assert isinstance(side, Ours)
        self._ask_large(side)
        deferral = 1.0 + LONGER * self._cold(side)
        self._tokens = tokens_lasting(side, self._numbers, deferral, model="small")

    def _measure(self, side: Side) -> Figure:
        assert isinstance(side, Ours)
        cold = self._cold(side)
        side.unload("large")
        drop(self._files)
        stream = side.backend.stream(
            str(self._models["small"]),
            list(story(self._numbers.take(side), 0).messages),
            max_tokens=self._tokens,
        )
        next(stream)
        began = time.monotonic()
        asking = threading.Thread(target=self._ask_large, args=(side,))
        asking.start()
        for _ in stream:
            pass
        share = sum(map(cached, self._files)) / len(self._files)
        asking.join()
        events = [e for e in side.backend.events() if e.time >= began]
        if not any(e.kind == "load.deferred" for e in events):
            raise Failed("the load was not deferred: the answer of the small model ended too soon")
        warm = _seconds(side, began)
        return Figure(
            value=warm / cold,
            details={
                "cold load, s": cold,
                "deferred load, s": warm,
                "deferred for, s": next(
                    float(e.details["waited"]) for e in events if e.kind == "load.started"
                ),
                "in the file cache by then": share,
            },
        )

    def _cold(self, side: Ours) -> float:
        side.unload("large")
        drop(self._files)
        began = time.monotonic()
        self._ask_large(side)
        return _seconds(side, began)

    def _ask_large(self, side: Ours) -> None:
        # By a request, whose tokenizer is read before the load: what is left is the weights.
        whole([side.ask(story(self._numbers.take(side), 2))])


def _seconds(side: Ours, since: float) -> float:
    """How long the engine took for the load that ended since then."""
    events = side.backend.events()
    ended = next(e for e in events if e.kind == "load.finished" and e.time >= since)
    return float(ended.details["seconds"])
