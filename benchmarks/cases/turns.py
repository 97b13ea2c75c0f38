"""A chat of ten turns: what was said before must not be computed again at each turn."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

from ..harness import Case, Figure, whole
from ..pace import Numbers
from ..side import Ask, Setup, Side

TURNS = 10
ANSWER = 16  # tokens; the chat grows by the user's words
WORDS = (
    "The keeper climbs the stairs, trims the wick and looks at the sea. The fog is thick, "
    "a ship sounds its horn, and the lamp turns slowly over the rocks below. "
)


def case(args: argparse.Namespace) -> list[Case]:
    return [_case("turns", ["large"]), _case("turns-two", ["large", "small"])]


def _case(name: str, models: Sequence[str]) -> Case:
    numbers = Numbers()

    def measure(side: Side) -> Figure:
        number = numbers.take(side)
        chats = {model: Chat(model, number) for model in models}
        firsts = [sum(chats[model].turn(side, turn) for model in models) for turn in range(TURNS)]
        details = {f"turn {i + 1}, ms": 1000 * first for i, first in enumerate(firsts)}
        early, late = statistics.median(firsts[1:4]), statistics.median(firsts[-3:])
        return Figure(value=sum(firsts), details={"last three by 2 to 4": late / early, **details})

    with_whom = "one model" if len(models) == 1 else "two models, each turn asked of both"
    return Case(
        name=name,
        what=f"A chat of {TURNS} turns with {with_whom}, answers of {ANSWER} tokens, prefix cache "
        "on: the sum of the times to the first token. Each turn holds all that was said before.",
        unit="s",
        better="lower",
        setup=lambda folders: Setup(models=folders, prefix_cache=True, loaded=tuple(models)),
        measure=measure,
        aim="flat over the turns; ahead of each peer",
    )


class Chat:
    """What was said so far with one model.

    Args:
        number: with which it begins, so that no other chat begins like it.
    """

    def __init__(self, model: str, number: int) -> None:
        self._model = model
        self._messages: list[dict[str, str]] = []
        self._number = number

    def turn(self, side: Side, turn: int) -> float:
        """Say more, and hear the answer. Returns seconds to its first piece."""
        content = f"Log {self._number}, day {turn}. {WORDS}What does he do next?"
        self._messages.append({"role": "user", "content": content})
        ask = Ask(messages=list(self._messages), max_tokens=ANSWER, model=self._model)
        (heard,) = whole([side.ask(ask)])
        self._messages.append({"role": "assistant", "content": heard.text})
        return heard.first
