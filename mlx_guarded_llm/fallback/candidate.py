"""The models that can be asked: a local one behind the backend, or any other."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from ..errors import GuardedLLMError, InvalidRequest
from ..grammar.schema import held_part
from ..models.naming import model_name, split_options, with_options
from ..models.spec import LOAD_OPTIONS
from ..params import CheckedSchema
from ..results import Chunk, Result
from .checks import fitted

if TYPE_CHECKING:
    from ..backend import BaseBackend
    from ..models import OnProgress


@dataclass(frozen=True, kw_only=True)
class Call:
    """One attempt's arguments.

    Attributes:
        prompt: a string, OpenAI-style messages or token ids, as `Backend.generate` takes them.
        options: fields of `SamplingParams` and `PromptRequest`.
        timeout: seconds that this attempt may take.
        request_id: its name in the record.
        on_progress: called with the progress of downloads, loads and prefill.
    """

    prompt: str | Sequence[Mapping[str, Any] | int]
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
        name: what `Provenance.served_model` shows.
        errors: exceptions that mean "no answer". Others are bugs and are not caught. After
            one whose `retryable` or `is_retryable` is true the candidate is asked again; one
            whose `fallback` is false ends the call.
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

    def takes(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options of a call that make a difference to its answer; by default all.

        It is not asked again when only others have changed.
        """
        return options

    def fitted(self, result: Result, options: Mapping[str, Any]) -> Result:
        """The answer with calls that fit no offered tool moved to the invalid ones."""
        return fitted(result, options)

    def may_pass(self, error: Exception) -> bool:
        """Whether another attempt may succeed after this error; by default as the error says."""
        return bool(getattr(error, "retryable", getattr(error, "is_retryable", False)))

    def cancel(self, request_id: str) -> None:
        """Stop an attempt, from any thread. By default it runs on."""
        del request_id


class LocalModel(Candidate):
    """A model that a `Backend` runs.

    Args:
        backend: runs it.
        name: alias, folder or Hugging Face repository.
        **options: what it is loaded with, as `Backend.load` takes it; `name` then is the
            full name: `phi3-mini[kv_bits=8]`.

    Raises:
        InvalidRequest: an option is unknown, or the name is no name.
    """

    errors = (GuardedLLMError,)

    def __init__(self, backend: BaseBackend, name: str | Path, **options: Any) -> None:
        if wrong := sorted(options.keys() - set(LOAD_OPTIONS)):
            raise InvalidRequest(
                f"{wrong[0]!r} is nothing that a model is loaded with.",
                hint=f"There are: {', '.join(LOAD_OPTIONS)}.",
            )
        full = with_options(model_name(name), options)
        # The name may have had brackets before, and only a catalog can read those.
        self.name = backend.full_name(full) if split_options(full) else full
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
        options = dict(call.options)
        if isinstance(options.get("schema"), Mapping):
            held = held_part(options["schema"])  # the answer is checked for the rest of it
            options["schema"] = CheckedSchema(held) if isinstance(held, Mapping) else held
        return {
            "timeout": call.timeout,
            "request_id": call.request_id,
            "on_progress": call.on_progress,
            **options,
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
        stop_string=result.stop_string,
        usage=result.usage,
        guard=result.guard,
    )
