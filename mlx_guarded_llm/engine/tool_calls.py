"""From the text between tool markers to the calls it stands for."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from ..results import FinishReason, InvalidToolCall, ToolCall
from .tool_format import Parser

CUT_OFF = "cut off"


class CallReader:
    """Gathers the text of tool calls and reads each when it ends.

    Args:
        parser: reads the text of a call; it may return or raise anything.
        tools: the tools that were offered; their schemas type the arguments.
        has_end_marker: the format marks the end of a call. Without one (Mistral) a
            call ends where the answer does.
        at_most: calls that are taken; None takes all.

    Attributes:
        ready: calls are waiting to be taken.
        count: calls that could be read.
    """

    def __init__(
        self,
        parser: Parser,
        tools: Sequence[Mapping[str, Any]],
        *,
        has_end_marker: bool,
        at_most: int | None = None,
    ) -> None:
        self._parser = parser
        self._tools = list(tools)
        self._has_end_marker = has_end_marker
        self._at_most = at_most
        self._text = ""
        self._calls: list[ToolCall] = []
        self._invalid: list[InvalidToolCall] = []
        self.ready = False
        self.count = 0

    @property
    def full(self) -> bool:
        """No more calls are taken."""
        return self._at_most is not None and self.count >= self._at_most

    def add(self, text: str) -> None:
        """More text of the call that is being written."""
        self._text += text

    def end(self) -> None:
        """The end marker has come."""
        self._keep(self._read())

    def end_without_marker(self, reason: FinishReason) -> None:
        """The answer has ended inside the call.

        A model that stopped by itself may have left out the marker only. Cut off by
        length or cancelled, a lenient parser could take half an argument for a whole
        one, so it is not asked.
        """
        result: list[ToolCall] | InvalidToolCall = InvalidToolCall(self._text, CUT_OFF)
        if reason == "stop" or not self._has_end_marker:
            read = self._read()
            finished = reason == "stop" and not self._has_end_marker
            if finished or not isinstance(read, InvalidToolCall):
                result = read
        self._keep(result)

    def take(self) -> tuple[tuple[ToolCall, ...], tuple[InvalidToolCall, ...]]:
        """The calls that have ended since this was last asked."""
        taken = tuple(self._calls), tuple(self._invalid)
        self._calls, self._invalid, self.ready = [], [], False
        return taken

    def _read(self) -> list[ToolCall] | InvalidToolCall:
        """All calls in the text, or why not: none is taken without the others."""
        try:
            parsed = self._parser(self._text, self._tools)
            return [_call(item) for item in (parsed if isinstance(parsed, list) else [parsed])]
        except Exception as error:  # a parser may raise anything
            return InvalidToolCall(self._text, f"{type(error).__name__}: {error}")

    def _keep(self, result: list[ToolCall] | InvalidToolCall) -> None:
        if isinstance(result, InvalidToolCall):
            self._invalid.append(result)
        else:
            room = None if self._at_most is None else self._at_most - self.count
            self._calls += result[:room]
            self.count += len(result[:room])
        self._text = ""
        self.ready = True


def _call(parsed: object) -> ToolCall:
    if not isinstance(parsed, dict):
        raise ValueError(f"a call is an object, not {parsed!r}")
    name = parsed.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError("the call names no function")
    # Models that learnt from schemas write "parameters" at times.
    arguments = parsed.get("arguments", parsed.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of {name} are no object")
    return ToolCall(f"call_{uuid.uuid4().hex}", name, arguments)
