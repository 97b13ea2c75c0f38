"""The process that has the model in memory is killed in the middle of answers."""

from __future__ import annotations

import argparse
import itertools
import signal
import threading
import time
from collections.abc import Sequence

from ..harness import Case, Failed, Figure, whole
from ..pace import makespan, story
from ..side import Ask, Heard, Setup, Side, heaviest

STREAMS = 4
STRIKE = 0.4  # of the seconds that the answers take
BACK = 20.0  # seconds a side has to come back
PATIENCE = 60.0  # seconds, besides those of the answers, after which they hang
BREATH = 0.2  # seconds between two tries to reach a side


def case(args: argparse.Namespace) -> Case:
    asks = [story(i, args.tokens) for i in range(STREAMS)]
    quiet: dict[str, list[Heard]] = {}  # by side, what came without a crash
    repeats: dict[str, int] = {}  # by side, how many texts were the same twice without one

    def warm_up(side: Side) -> None:
        once, twice = (list(whole(side.together(asks))) for _ in range(2))
        quiet[side.name] = twice
        repeats[side.name] = sum(a.text == b.text for a, b in zip(once, twice, strict=True))

    def measure(side: Side) -> Figure:
        expected = quiet[side.name]
        struck, heard = _struck(side, asks, makespan(expected))
        pairs = list(zip(heard, expected, strict=True))
        lost = sum(bool(one.error) or one.tokens < usual.tokens for one, usual in pairs)
        details = {
            "answers lost": float(lost),
            "of the same text": float(sum(one.text == usual.text for one, usual in pairs)),
            "the same twice without a crash": float(repeats[side.name]),
        }
        if lost:
            return Figure(value=_back(side, asks[0], struck, lost), details=details)
        gaps = [_gap(one, struck) for one in heard]
        return Figure(value=max(gaps), details={**details, "the first of them, s": min(gaps)})

    return Case(
        name="crash",
        what=f"{STREAMS} streams, and the process with the model in memory gets SIGKILL: seconds "
        "until all of them go on; if answers are lost, until a new request has its first piece.",
        unit="s",
        better="lower",
        setup=lambda models: Setup(models={"large": models["large"]}),
        measure=measure,
        needs_raw=False,
        warm_up=warm_up,
        aim="no answer lost",
    )


def _struck(side: Side, asks: Sequence[Ask], seconds: float) -> tuple[float, list[Heard]]:
    """Ask, and kill in the middle. Returns when that was, and what came.

    Raises:
        Failed: nothing was under way, or an answer neither ends nor fails.
    """
    heard: list[Heard] = []
    thread = threading.Thread(target=lambda: heard.extend(side.together(asks)), daemon=True)
    thread.start()
    time.sleep(STRIKE * seconds)
    victim = heaviest(side.processes())
    struck = time.monotonic()
    victim.send_signal(signal.SIGKILL)
    thread.join(seconds + PATIENCE)
    if thread.is_alive():
        raise Failed(f"after a crash its answers hang for more than {PATIENCE:.0f} s")
    if any(one.ended < struck for one in heard):
        raise Failed("an answer ended before the crash; raise --tokens")
    return struck, heard


def _gap(heard: Heard, struck: float) -> float:
    """Seconds from the crash to the end of the longest silence that ended after it.

    Pieces that were on their way when it happened are not yet those of the next engine.
    """
    times = [heard.began, *heard.pieces]
    silences = [(b - a, b) for a, b in itertools.pairwise(times) if b > struck]
    return max(silences)[1] - struck


def _back(side: Side, ask: Ask, struck: float, lost: int) -> float:
    """Seconds from the crash to the first piece of a new answer.

    Raises:
        Failed: there is none.
    """
    while time.monotonic() < struck + BACK:
        heard = side.ask(ask)
        if not heard.error and heard.pieces:
            return heard.pieces[0] - struck
        time.sleep(BREATH)
    raise Failed(f"{lost} of {STREAMS} answers lost, and it does not come back in {BACK:.0f} s")
