"""The turns of a conversation, in the order and shape that chat templates expect."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

_PLAIN = {"role", "content", "name"}


def take_turns(
    messages: Iterable[dict[str, Any]], *, of_any_name: bool = False
) -> list[dict[str, Any]]:
    """Join consecutive messages of one role: many chat templates want roles to alternate.

    Only messages of text alone are joined, with an empty line between them.

    Args:
        messages: OpenAI-style, with text as content; they are not changed.
        of_any_name: also join messages with different names; the result has none.
    """
    turns: list[dict[str, Any]] = []
    for message in messages:
        last = turns[-1] if turns else {}
        plain = {"role", "content"} <= last.keys() | message.keys() <= _PLAIN
        alike = plain and last.get("role") == message["role"]
        named = alike and last.get("name") == message.get("name")
        if named or (alike and of_any_name):
            texts = (last["content"], message["content"])
            joined = {**last, "content": "\n\n".join(text for text in texts if text)}
            turns[-1] = joined if named else {k: v for k, v in joined.items() if k != "name"}
        else:
            turns.append(message)
    return turns


def fold_system(messages: Sequence[dict[str, Any]], first: int) -> list[dict[str, Any]]:
    """Make system messages part of the user's messages.

    For chat templates that accept no system message, or only the first one. A system message
    goes to the head of the user's message that follows it. If an answer follows, or nothing,
    it goes to the end of the user's message before it, or is one of its own. Only before an
    answer that begins the conversation it stays.

    Args:
        messages: OpenAI-style, with text as content; they are not changed.
        first: system messages before this place stay as they are.
    """
    folded: list[dict[str, Any]] = list(messages[:first])
    held: list[dict[str, Any]] = []
    for message in messages[first:]:
        if message["role"] == "system":
            held.append(message)
        elif message["role"] == "user":
            folded.append({**message, "content": _joined([*held, message])})
            held = []
        else:
            folded = [*_fold_back(folded, held), message]
            held = []
    return _fold_back(folded, held)


def _fold_back(folded: list[dict[str, Any]], held: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if not held or not folded or folded[-1]["role"] == "system":
        return folded + held
    if folded[-1]["role"] == "user":
        last = folded[-1]
        return [*folded[:-1], {**last, "content": _joined([last, *held])}]
    return [*folded, {"role": "user", "content": _joined(held)}]


def _joined(messages: Iterable[Mapping[str, Any]]) -> str:
    return "\n\n".join(text for message in messages if (text := message["content"]))


def order_results(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the results of tools into the order of the calls that they answer.

    Agents append results as they complete, and many chat templates show no ids, so the model
    matches results to calls by position. Each run of results is sorted by the calls just
    before it. If several calls share an id, its results go to them in order; a result whose
    id no call has stays where it is.

    Args:
        messages: OpenAI-style; they are not changed.
    """
    ordered: list[dict[str, Any]] = []
    calls: list[Any] = []  # ids of the calls that the next results answer
    for role, group in groupby(messages, key=itemgetter("role")):
        run = list(group)
        ordered += _by_call(run, calls) if role == "tool" else run
        said = run if role == "assistant" else ()
        calls = [call.get("id") for message in said for call in message.get("tool_calls") or ()]
    return ordered


def _by_call(results: list[dict[str, Any]], calls: Sequence[Any]) -> list[dict[str, Any]]:
    places: defaultdict[Any, deque[int]] = defaultdict(deque)
    for place, identity in enumerate(calls):
        if isinstance(identity, str):
            places[identity].append(place)

    def place_of(result: Mapping[str, Any]) -> int | None:
        free = places.get(result["tool_call_id"])
        if not free:
            return None
        return free.popleft() if len(free) > 1 else free[0]

    found = [place_of(result) for result in results]
    known = [(place, i) for i, place in enumerate(found) if place is not None]
    in_order = iter(sorted(known))
    return [
        result if place is None else results[next(in_order)[1]]
        for result, place in zip(results, found, strict=True)
    ]
