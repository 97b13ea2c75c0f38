"""One model under traffic that never pauses, and requests for another one."""

from __future__ import annotations

import argparse
import threading
import time

from ..harness import Case, Figure, whole
from ..ours import Ours
from ..pace import Numbers, makespan, story
from ..side import Heard, Setup, Side, run_all

STREAMS = 4  # of the large model, at any time
REQUESTS = 3  # of the small one, in a round
APART = 1.0  # seconds from the end of one to the next
DEADLINE = 40.0  # seconds after which the traffic ends, so that what waits may go on
ANSWER = 8  # tokens of the small model


def case(args: argparse.Namespace) -> Case:
    numbers = Numbers()

    def measure(side: Side) -> Figure:
        large: list[Heard] = []
        small: list[Heard] = []
        over = threading.Event()

        def stream() -> None:
            while not over.is_set() and not (large and large[-1].error):
                large.append(side.ask(story(numbers.take(side), args.tokens)))

        def ask_small() -> None:
            for _ in range(REQUESTS):
                time.sleep(APART)
                if over.is_set():
                    return
                patience = threading.Timer(DEADLINE, over.set)
                patience.start()
                small.append(side.ask(story(numbers.take(side), ANSWER, model="small")))
                patience.cancel()
            over.set()

        run_all([stream] * STREAMS + [ask_small])
        whole([*large, *small])
        worst = max(one.first for one in small)
        if worst > DEADLINE:
            side.notes.append(f"one waited until the traffic ended, for more than {DEADLINE:.0f} s")
        details = {
            "least wait, s": min(one.first for one in small),
            "worst wait of the traffic, s": max(one.first for one in large),
            "traffic, tokens/s": sum(one.tokens for one in large) / makespan(large),
        }
        if isinstance(side, Ours):  # what the wait is bounded by
            guards = [side.guards[one] for one in large]
            details["longest answer beside it, s"] = max(g.prefill + g.decode for g in guards)
            details["longest load, s"] = max(side.guards[one].loading for one in small)
        return Figure(value=min(worst, DEADLINE), details=details)

    return Case(
        name="starvation",
        what=f"{STREAMS} streams of the large model at any time; {REQUESTS} requests, one after "
        "the other, for the small one, memory for one of the two: the worst wait for a first "
        f"piece. {DEADLINE:.0f} s stands for that or more.",
        unit="s",
        better="lower",
        setup=lambda models: Setup(models=models, fits_one=True),
        measure=measure,
        needs_raw=False,
        aim="at most fairness_window (5 s), what was running, and the load",
    )
