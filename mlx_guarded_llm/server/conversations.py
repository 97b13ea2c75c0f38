"""Conversations that clients go on with by naming their last answer."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """One, up to an answer.

    Attributes:
        client: whose; nobody else goes on with it.
        asked: what was said before the answer, in order. Each item has an id.
        response: with the answer.
        named: the items of the last turn, by their ids.
        size: bytes of all of it as JSON.
    """

    client: str
    asked: tuple[Item, ...]
    response: Mapping[str, Any]
    named: Mapping[str, Item]
    size: int

    @property
    def items(self) -> tuple[Item, ...]:
        """All of it, in order."""
        return (*self.asked, *self.response["output"])


class Conversations:
    """The latest ones, as far as there is room. Belongs to the event loop.

    Args:
        most_bytes: of all of them; what several have in common counts for each.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[str, Conversation] = OrderedDict()
        self._size = 0

    def find(self, name: str, client: str) -> Conversation | None:
        """The conversation up to an answer; None if it is not kept, or another client's."""
        kept = self._kept.get(name)
        return kept if kept is not None and kept.client == client else None

    def item(self, name: str, client: str) -> Item | None:
        """An item of any conversation of a client's."""
        for kept in reversed(self._kept.values()):
            if kept.client == client and name in kept.named:
                return kept.named[name]
        return None

    def keep(
        self,
        client: str,
        earlier: Conversation | None,
        turn: Sequence[Item],
        response: Mapping[str, Any],
    ) -> None:
        """Keep one by the name of its last answer; the oldest make room for it.

        Args:
            earlier: what it goes on with.
            turn: what was said then. Items without an id get one.
            response: with the answer to it.
        """
        name = response["id"]
        said = [
            item if isinstance(item.get("id"), str) else {**item, "id": f"item_{place}_{name}"}
            for place, item in enumerate(turn)
        ]
        size = sum(len(json.dumps(item)) for item in (*said, response))
        named = {item["id"]: item for item in (*said, *response["output"])}
        asked = (*(earlier.items if earlier else ()), *said)
        size += earlier.size if earlier else 0
        self._kept[name] = Conversation(client, asked, response, named, size)
        self._size += size
        while self._size > self._most:
            self.forget(next(iter(self._kept)))

    def forget(self, name: str) -> None:
        """Keep one no longer. Those that went on with it keep what was said in it."""
        self._size -= self._kept.pop(name).size
