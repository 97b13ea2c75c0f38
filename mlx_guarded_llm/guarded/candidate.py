"""Who can be asked: a local model behind the backend, or a model of somebody else's."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self

from ..errors import GuardedLLMError
from ..results import Chunk, Result

if TYPE_CHECKING:
    from ..backend import Backend
    from ..models import OnProgress


@dataclass(frozen=True, kw_only=True)
class Call:
    """One attempt's arguments.

    Attributes:
        prompt: a string or OpenAI-style messages, as `Backend.generate` takes them.
        options: fields of `SamplingParams` and `PromptRequest`.
        timeout: seconds that this attempt may take.
        request_id: its name in the record.
        on_progress: told of downloads, loads and prefill.
    """

    prompt: str | Sequence[Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 3600.0
    request_id: str = ""
    on_progress: OnProgress | None = None


class ChunkStream(Protocol):
    """Pieces of an answer, of which the last carries finish reason, usage and guard."""

    def __iter__(self) -> Iterator[Chunk]: ...
    def __next__(self) -> Chunk: ...
    def close(self) -> None: ...


class AsyncChunkStream(Protocol):
    """The same for `async for`."""

    def __aiter__(self) -> AsyncIterator[Chunk]: ...
    async def __anext__(self) -> Chunk: ...
    async def aclose(self) -> None: ...


class Candidate(ABC):
    """A model that can be asked. Write one to let a model of another library answer.

        from mlx_guarded_llm import Candidate, GuardedLLM, Provenance, Result

        class Echo(Candidate):
            name = "echo"

            def generate(self, call):
                guard = Provenance(
                    request_id=call.request_id, requested_model="echo", served_model="echo"
                )
                return Result(text=str(call.prompt), guard=guard)

        print(GuardedLLM(None, Echo()).generate("Hello?").text)

    Attributes:
        name: as `Provenance.served_model` tells it.
        errors: exceptions that mean "no answer". Others are bugs and pass through.
            Those that have a true `retryable` or `is_retryable` are tried again; a
            `fallback` that is false ends the call.
    """

    name: str
    errors: tuple[type[Exception], ...] = (Exception,)

    @abstractmethod
    def generate(self, call: Call) -> Result:
        """Answer, within `call.timeout` seconds."""

    async def agenerate(self, call: Call) -> Result:
        """As `generate`, without blocking the event loop; by default in a thread."""
        return await asyncio.to_thread(self.generate, call)

    def stream(self, call: Call) -> ChunkStream:
        """Answer piece by piece; by default all in one piece."""
        return WholeAnswer(self, call)

    def astream(self, call: Call) -> AsyncChunkStream:
        """As `stream`, for `async for`."""
        return WholeAnswer(self, call)

    def cancel(self, request_id: str) -> None:
        """Stop an attempt, from any thread. By default it runs on."""
        del request_id


class LocalModel(Candidate):
    """A model that a `Backend` runs."""

    errors = (GuardedLLMError,)

    def __init__(self, backend: Backend, name: str) -> None:
        self.name = name
        self._backend = backend

    def generate(self, call: Call) -> Result:
        return self._backend.generate(self.name, call.prompt, **self._arguments(call))

    async def agenerate(self, call: Call) -> Result:
        return await self._backend.agenerate(self.name, call.prompt, **self._arguments(call))

    def stream(self, call: Call) -> ChunkStream:
        return self._backend.stream(self.name, call.prompt, **self._arguments(call))

    def astream(self, call: Call) -> AsyncChunkStream:
        return self._backend.astream(self.name, call.prompt, **self._arguments(call))

    def cancel(self, request_id: str) -> None:
        self._backend.cancel(request_id)

    @staticmethod
    def _arguments(call: Call) -> dict[str, Any]:
        return {
            "timeout": call.timeout,
            "request_id": call.request_id,
            "on_progress": call.on_progress,
            **call.options,
        }


class WholeAnswer:
    """A stream of one piece, for a candidate that has no better one."""

    def __init__(self, candidate: Candidate, call: Call) -> None:
        self._candidate = candidate
        self._call: Call | None = call

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        call = self._take()
        if call is None:
            raise StopIteration
        return as_chunk(self._candidate.generate(call))

    async def __anext__(self) -> Chunk:
        call = self._take()
        if call is None:
            raise StopAsyncIteration
        return as_chunk(await self._candidate.agenerate(call))

    def _take(self) -> Call | None:
        call, self._call = self._call, None
        return call

    def close(self) -> None:
        self._call = None

    async def aclose(self) -> None:
        self._call = None


def as_chunk(result: Result) -> Chunk:
    """A whole answer as the only piece of a stream."""
    return Chunk(
        text=result.text,
        reasoning=result.reasoning,
        tool_calls=result.tool_calls,
        invalid_tool_calls=result.invalid_tool_calls,
        logprobs=result.logprobs,
        finish_reason=result.finish_reason,
        usage=result.usage,
        guard=result.guard,
    )
