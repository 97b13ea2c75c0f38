"""Loads and unloads that clients ask for, which go on when the clients have their reply.

How far a load is, is told of every load, whoever it is for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from ..backend import ModelInfo, ServableBackend
from ..errors import GuardedLLMError
from ..logs import get_logger
from ..models import Progress
from .models import ServedModel

logger = get_logger("server")

Kind = Literal["load", "pin", "unload"]
_LOADS: tuple[Kind, ...] = ("load", "pin")

MOST = 1000  # items that wait for a listener, who is slow

_VALUES = {
    "resident": "loaded",
    "unloading": "loaded",  # its requests may still be running
    "loading": "loading",
    "deferred": "loading",
    "queued": "loading",
    "quarantined": "unloaded",
}


class Loads:
    """All of them. Belongs to the event loop.

    Args:
        backend: loads.

    Attributes:
        errors: what the last load of a model failed of, by its name.
        progress: the share that is done of each load under way, by the model's name.
    """

    def __init__(self, backend: ServableBackend) -> None:
        self.errors: dict[str, str] = {}
        self.progress: dict[str, float] = {}
        self._backend = backend
        self._tasks: dict[tuple[str, Kind], asyncio.Task[None]] = {}
        self._listeners: list[asyncio.Queue[Any]] = []

    async def load(self, model: ServedModel, *, pin: bool, patience: float) -> None:
        """Begin to load a model; one that is loaded stays so.

        Args:
            model: one that is served.
            pin: keep it from being evicted.
            patience: seconds to wait for it, or for an error.

        Raises:
            GuardedLLMError: it failed within this time.
        """
        task = self._tasks.get((model.name, "pin" if pin else "load"))
        if task is None:
            task = self._begin(model, "pin" if pin else "load", self._load(model, pin))
        await self._wait(task, patience)

    async def unload(self, model: ServedModel, *, patience: float) -> None:
        """Begin to unload a model, which waits for its requests to end.

        Args:
            model: one that is served.
            patience: as of `load`.
        """
        task = self._tasks.get((model.name, "unload"))
        if task is None:
            self.errors.pop(model.name, None)
            task = self._begin(model, "unload", self._unload(model))
        await self._wait(task, patience)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Hear how far every load is, whoever it is for."""
        loop = asyncio.get_running_loop()

        def moved(progress: Progress) -> None:  # from another thread
            if progress.request_id:
                return
            try:
                loop.call_soon_threadsafe(self._tell, progress)
            except RuntimeError:  # the loop is closed
                pass

        leave = self._backend.follow_progress(moved)
        try:
            yield
        finally:
            leave()

    def value(self, model: str, info: ModelInfo | None) -> str:
        """`loaded`, `loading` or `unloaded`; for the arguments see `status`."""
        value = _VALUES[info.state] if info is not None else "unloaded"
        # Its files may have to be fetched or its engine to be started first, of which the
        # backend says nothing.
        if value == "unloaded" and any((model, kind) in self._tasks for kind in _LOADS):
            return "loading"
        return value

    def status(self, model: str, info: ModelInfo | None) -> dict[str, Any]:
        """The state of a model as llama.cpp's router tells it.

        Args:
            model: its name.
            info: what the backend knows of it.
        """
        status: dict[str, Any] = {"value": self.value(model, info), "args": []}
        if status["value"] == "loaded":
            self.errors.pop(model, None)  # a request has loaded it since
        error = self.errors.get(model)
        if error and status["value"] == "unloaded":
            status |= {"failed": True, "exit_code": 1, "error": error}
        return status

    def listen(self) -> asyncio.Queue[Any]:
        """A queue of (model, progress), and of None when a load begins or may have ended."""
        queue: asyncio.Queue[Any] = asyncio.Queue(MOST)
        self._listeners.append(queue)
        return queue

    def leave(self, queue: asyncio.Queue[Any]) -> None:
        """Nobody reads it any more."""
        self._listeners.remove(queue)

    def stop(self) -> None:
        """The server ends: nobody waits for them any more."""
        for task in self._tasks.values():
            task.cancel()

    def _begin(
        self, model: ServedModel, kind: Kind, work: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        async def noted() -> None:
            try:
                await work
            except GuardedLLMError as error:
                self.errors[model.name] = str(error)
                logger.warning("the %s of %s failed: %s", kind, model.name, error)
                raise
            finally:
                del self._tasks[model.name, kind]
                self._put(None)

        task = self._tasks[model.name, kind] = asyncio.create_task(noted())
        self._put(None)
        # Nobody may be there any more to take its error.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _wait(self, task: asyncio.Task[None], patience: float) -> None:
        await asyncio.wait([task], timeout=patience)
        if task.done():
            task.result()

    async def _unload(self, model: ServedModel) -> None:
        await self._backend.aunload(model.name)

    async def _load(self, model: ServedModel, pin: bool) -> None:
        self.errors.pop(model.name, None)
        await self._backend.aload(model.name, pin=pin)

    def _tell(self, progress: Progress) -> None:
        whole = progress.done == progress.total
        if progress.total and (whole or not progress.over):
            stages = ["load"] if progress.stage == "load" else ["download", "verify", "load"]
            told = {
                "stages": stages,
                "current": progress.stage,
                "value": round(progress.done / progress.total, 4),
            }
            self._put((progress.model, told))
            self.progress[progress.model] = progress.done / progress.total
        if whole or progress.over:
            self.progress.pop(progress.model, None)
        if progress.over:  # the load may have ended before this was told
            self._put(None)

    def _put(self, item: Any) -> None:
        for queue in self._listeners:
            if not queue.full():
                queue.put_nowait(item)
