"""A backend that fails on purpose, for tests of what is above a backend.

`GuardedLLM` and the adapters call it as a `Backend`. Each call takes the next fault that is
planned for its model; without one it goes to the real backend.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from mlx_guarded_llm.fallback.candidate import as_chunk
from mlx_guarded_llm.results import Chunk, Provenance, Result, Usage

if TYPE_CHECKING:
    from mlx_guarded_llm import Backend


@dataclass(frozen=True)
class Broken:
    """A stream fails with `error` after this many pieces; a whole answer fails at once."""

    error: Exception
    pieces: int = 1


@dataclass(frozen=True)
class Says:
    """This is the answer, instead of the model's own."""

    text: str = ""
    reasoning: str = ""
    finish_reason: Any = "stop"


@dataclass(frozen=True)
class Options:
    """The real answer, with changed options: `Options({"max_tokens": 2})`."""

    changes: Mapping[str, Any]


Fault = Exception | Broken | Says | Options

EMPTY = Says()
LOOP = Says("and so on and so forth, " * 20, finish_reason="length")
CUT_THINKING = Says(reasoning="Let me see. First", finish_reason="length")


class FaultyBackend:
    """Passes calls on to a real backend, except those with a fault.

    Args:
        backend: the real one; None if every call has a fault or an entry in `answers`.
        faults: the faults of each model's calls, in order.
        answers: the answer of each model that has no fault left, instead of the real
            backend's.

    Attributes:
        calls: (model, options) of every call that came in.
        timeout: as `Backend.timeout`.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        faults: Mapping[str, Iterable[Fault]] | None = None,
        *,
        answers: Mapping[str, str] | None = None,
    ) -> None:
        self._backend: Any = backend
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        for model, planned in (faults or {}).items():
            self._faults[model].extend(planned)
        self._answers = dict(answers or {})
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.timeout = 60.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def full_name(self, model: str) -> str:
        name: str = model if self._backend is None else self._backend.full_name(model)
        return name

    def generate(self, model: str, prompt: Any, **arguments: Any) -> Result:
        said, arguments = self._next(model, arguments)
        if said is None:
            result: Result = self._backend.generate(model, prompt, **arguments)
            return result
        return _whole(said, model, arguments)

    async def agenerate(self, model: str, prompt: Any, **arguments: Any) -> Result:
        said, arguments = self._next(model, arguments)
        if said is None:
            result: Result = await self._backend.agenerate(model, prompt, **arguments)
            return result
        await asyncio.sleep(0)
        return _whole(said, model, arguments)

    def stream(self, model: str, prompt: Any, **arguments: Any) -> Any:
        said, arguments = self._next(model, arguments)
        if said is None:
            return self._backend.stream(model, prompt, **arguments)
        return _Pieces(said, lambda: _whole(said, model, arguments))

    def astream(self, model: str, prompt: Any, **arguments: Any) -> Any:
        said, arguments = self._next(model, arguments)
        if said is None:
            return self._backend.astream(model, prompt, **arguments)
        return _Pieces(said, lambda: _whole(said, model, arguments))

    def cancel(self, request_id: str) -> None:
        if self._backend is not None:
            self._backend.cancel(request_id)

    def _next(
        self, model: str, arguments: dict[str, Any]
    ) -> tuple[Exception | Broken | Says | None, dict[str, Any]]:
        about = ("timeout", "request_id", "on_progress")
        self.calls.append((model, {k: v for k, v in arguments.items() if k not in about}))
        planned = self._faults[model]
        fault: Fault | None = planned.popleft() if planned else None
        if isinstance(fault, Options):
            return None, {**arguments, **fault.changes}
        if fault is None and model in self._answers:
            return Says(self._answers[model]), arguments
        return fault, arguments


class _Pieces:
    """An answer word by word, for `for` and `async for`."""

    def __init__(self, said: Exception | Broken | Says, whole: Callable[[], Result]) -> None:
        self._error: Exception | None = None
        self._pieces: deque[Chunk] = deque()
        if isinstance(said, Says):
            self._pieces.extend(Chunk(text=word + " ") for word in said.text.split()[:-1])
            spoken = sum(len(piece.text) for piece in self._pieces)
            last = as_chunk(whole())
            self._pieces.append(replace(last, text=last.text[spoken:]))
        elif isinstance(said, Broken):
            self._pieces.extend(Chunk(text="Half. ") for _ in range(said.pieces))
            self._error = said.error
        else:
            self._error = said

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        if self._pieces:
            return self._pieces.popleft()
        if self._error is not None:
            raise self._error
        raise StopIteration

    async def __anext__(self) -> Chunk:
        await asyncio.sleep(0)
        try:
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None

    def close(self) -> None:
        self._pieces.clear()

    async def aclose(self) -> None:
        self.close()


def _whole(said: Exception | Broken | Says, model: str, arguments: Mapping[str, Any]) -> Result:
    if isinstance(said, Broken):
        raise said.error
    if isinstance(said, Exception):
        raise said
    tokens = len(said.text.split()) + len(said.reasoning.split())
    if said.finish_reason == "length":
        tokens = arguments.get("max_tokens", 1024)
    return Result(
        text=said.text,
        reasoning=said.reasoning,
        finish_reason=said.finish_reason,
        usage=Usage(5, tokens),
        guard=Provenance(
            request_id=arguments.get("request_id") or "",
            requested_model=model,
            served_model=model,
        ),
    )
