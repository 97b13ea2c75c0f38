"""Every way to ask a model, behind one face, so that each rule is tested once for all.

A face is a library (GuardedLLM itself, LangChain, LlamaIndex) and a way to ask in it: a
call or a stream, blocking or awaited. Conversations are written as OpenAI-style mappings;
an answer's `native` message may stand in them, as it does in an application.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlx_guarded_llm import Provenance, RetryPolicy
from mlx_guarded_llm.testing.faulty import FaultyBackend

Way = Literal["call", "stream", "acall", "astream"]
WAYS: tuple[Way, ...] = ("call", "stream", "acall", "astream")
SOON = RetryPolicy(attempts=3, initial_wait=0, jitter=0)

Conversation = str | Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a face was given, in the same words for all.

    Attributes:
        calls: (name, arguments) of each tool call.
        call_ids: of the same.
        unread: calls that could not be read.
        usage: tokens of the prompt and of the answer; None when nobody told them.
        model: the one that served, as the library tells it beside the guard.
        native: the library's message, which goes back into a conversation.
        whole: the library's answer, of which `taint` reads where it came from.
        pieces: text of each piece; a whole answer is one piece.
        ends: indexes of the pieces that have a guard, a usage or a finish reason.
    """

    text: str
    reasoning: str
    calls: tuple[tuple[str, dict[str, Any]], ...]
    call_ids: tuple[str, ...]
    unread: int
    finish_reason: str
    usage: Any
    model: str
    guard: Provenance
    native: Any
    whole: Any
    pieces: tuple[str, ...]
    ends: tuple[int, ...]


class Face(ABC):
    """One library, asked in one way."""

    library: str

    def __init__(self, way: Way) -> None:
        self.way = way

    def __str__(self) -> str:
        return f"{self.library}-{self.way}"

    def by(self, way: Way) -> Face:
        """The same library, asked in another way."""
        return type(self)(way)

    @property
    def streams(self) -> bool:
        return self.way.endswith("stream")

    @abstractmethod
    def make(self, backend: Any, model: str, **settings: Any) -> Any:
        """The library's object for a model; settings have the same names everywhere."""

    @abstractmethod
    def natives(self, conversation: Conversation) -> Any:
        """The conversation in the library's own messages."""

    @abstractmethod
    async def ask(self, llm: Any, conversation: Any, **options: Any) -> Answer:
        """Ask in this face's way. `tools`, `tool_choice` (a name, too) and `parallel` may be
        among the options; `conversation` may be what `natives` returned.
        """

    @abstractmethod
    async def open(self, llm: Any, conversation: Conversation) -> Any:
        """The library's own stream, of which nothing was read."""

    @abstractmethod
    async def make_object(self, llm: Any, cls: Any, text: str, **options: Any) -> Any:
        """An instance of a pydantic class, by the library's structured output."""

    @abstractmethod
    async def ask_with_retry(self, llm: Any, text: str) -> Any:
        """Ask with the library's own retry around it: five times, if the error allows it."""

    @abstractmethod
    def external(self, text: str) -> Any:
        """A model of the library that is not ours and answers this."""

    @abstractmethod
    def inspect(self, llm: Any) -> None:
        """Everything a library does with a model without asking it: metadata, dumps, copies."""


async def read(stream: Any) -> list[Any]:
    """All of a stream, blocking or awaited."""
    return [piece async for piece in pieces_of(stream)]


async def pieces_of(stream: Any) -> AsyncIterator[Any]:
    if hasattr(stream, "__aiter__"):
        async for piece in stream:
            yield piece
    else:
        for piece in stream:
            yield piece


async def close(stream: Any) -> None:
    if hasattr(stream, "aclose"):
        await stream.aclose()
    else:
        stream.close()


class Heard(FaultyBackend):
    """A backend that fails as planned, and keeps the prompts that reach it."""

    def __init__(self, backend: Any = None, faults: Any = None, **options: Any) -> None:
        super().__init__(backend, faults, **options)
        self.prompts: list[Any] = []

    def generate(self, model: str, prompt: Any, **arguments: Any) -> Any:
        self.prompts.append(prompt)
        return super().generate(model, prompt, **arguments)

    async def agenerate(self, model: str, prompt: Any, **arguments: Any) -> Any:
        self.prompts.append(prompt)
        return await super().agenerate(model, prompt, **arguments)

    def stream(self, model: str, prompt: Any, **arguments: Any) -> Any:
        self.prompts.append(prompt)
        return super().stream(model, prompt, **arguments)

    def astream(self, model: str, prompt: Any, **arguments: Any) -> Any:
        self.prompts.append(prompt)
        return super().astream(model, prompt, **arguments)

    def card(self, model: str) -> Any:
        return None if self._backend is None else self._backend.card(model)
